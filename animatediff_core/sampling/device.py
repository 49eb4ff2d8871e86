"""The device and dtype of a run."""

from importlib.metadata import version
from typing import Any

import torch

from ..errors import AnimateDiffError
from .placement import PlacedModel

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TF32 = "tf32"
"""The name of fp32 with products and convolutions rounded to 10 bits on CUDA. By default torch
rounds convolutions so in fp32, too."""


def choose(
    device: str | None, dtype: str | None, *, fast: bool = False
) -> tuple[torch.device, torch.dtype]:
    """Device and dtype: by default CUDA in fp16, else MPS in fp16, else the CPU in fp32.

    `fast` jobs use bf16 on a CPU that multiplies in bf16. From then on CUDA computes fp32 in
    fp32, or in TF32 for "tf32".
    """
    if device is None:
        device = "cpu"
        if torch.cuda.is_available():
            device = "cuda"
        elif torch.backends.mps.is_available():
            device = "mps"
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise AnimateDiffError(f"no device {device!r}; use cpu, cuda, cuda:1 or mps") from error
    if target.type == "cuda" and not torch.cuda.is_available():
        raise AnimateDiffError("no CUDA device on this machine; leave --device out, or use cpu")
    if target.type == "cuda" and (target.index or 0) >= (count := torch.cuda.device_count()):
        raise AnimateDiffError(f"no {device} on this machine, which has {count}; they start at 0")
    if target.type == "mps" and not torch.backends.mps.is_available():
        raise AnimateDiffError("no MPS device on this machine; leave --device out, or use cpu")
    if dtype not in (None, TF32, *DTYPES):
        raise AnimateDiffError(f"no dtype {dtype!r}; use {', '.join((*DTYPES, TF32))}")
    if dtype == TF32 and target.type != "cuda":
        raise AnimateDiffError("tf32 runs on CUDA only; use fp32")
    torch.backends.cuda.matmul.allow_tf32 = dtype == TF32
    torch.backends.cudnn.allow_tf32 = dtype != "fp32"  # the VAE beside a model in half precision
    number = DTYPES.get("fp32" if dtype == TF32 else str(dtype)) or _default_dtype(target, fast)
    if target.type == "cpu" and number == torch.float16:
        raise AnimateDiffError("fp16 does not run on the CPU; use fp32 or bf16")
    return target, number


def _default_dtype(target: torch.device, fast: bool) -> torch.dtype:
    if target.type != "cpu":
        return torch.float16
    halves = fast and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if halves else torch.float32


def made_with(model: PlacedModel) -> dict[str, Any]:
    """The settings of this machine that a clip's bits depend on."""
    names = {kind: name for name, kind in DTYPES.items()}
    if model.device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32:
        names[torch.float32] = TF32
    return {
        "device": str(model.device),
        "dtype": names[model.dtype],
        "kernels": model.kernels,
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
    }
