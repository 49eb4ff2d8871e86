"""Where and how exactly a model runs."""

from importlib.metadata import version
from typing import Any

import torch

from ..errors import AnimateDiffError
from ..speed import kernels_of

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TF32 = "tf32"
"""A name for fp32 whose products and convolutions on CUDA are rounded to 10 bits; fp32 is not,
though torch would convolve so."""


def choose(
    device: str | None, dtype: str | None, *, fast: bool = False
) -> tuple[torch.device, torch.dtype]:
    """CUDA in fp16, else MPS in fp16, else the CPU in fp32, unless told otherwise.

    `fast` jobs take bf16 on a CPU that multiplies in it. From then on CUDA computes fp32 in fp32,
    or in TF32 for "tf32".
    """
    if device is None:
        device = "cpu"
        if torch.cuda.is_available():
            device = "cuda"
        elif torch.backends.mps.is_available():
            device = "mps"
    try:
        where = torch.device(device)
    except RuntimeError as error:
        raise AnimateDiffError(f"no device {device!r}; use cpu, cuda, cuda:1 or mps") from error
    if where.type == "cuda" and not torch.cuda.is_available():
        raise AnimateDiffError("no CUDA device on this machine; leave --device out, or use cpu")
    if where.type == "cuda" and (where.index or 0) >= (count := torch.cuda.device_count()):
        raise AnimateDiffError(f"no {device} on this machine, which has {count}; they start at 0")
    if where.type == "mps" and not torch.backends.mps.is_available():
        raise AnimateDiffError("no MPS device on this machine; leave --device out, or use cpu")
    if dtype not in (None, TF32, *DTYPES):
        raise AnimateDiffError(f"no dtype {dtype!r}; use {', '.join((*DTYPES, TF32))}")
    if dtype == TF32 and where.type != "cuda":
        raise AnimateDiffError("tf32 runs on CUDA alone; use fp32")
    torch.backends.cuda.matmul.allow_tf32 = dtype == TF32
    torch.backends.cudnn.allow_tf32 = dtype != "fp32"  # the VAE beside a model in half precision
    kind = DTYPES.get("fp32" if dtype == TF32 else str(dtype)) or _usual(where, fast)
    if where.type == "cpu" and kind == torch.float16:
        raise AnimateDiffError("fp16 does not run on the CPU; use fp32 or bf16")
    return where, kind


def _usual(where: torch.device, fast: bool) -> torch.dtype:
    if where.type != "cpu":
        return torch.float16
    halves = fast and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if halves else torch.float32


def made_with(model: Any) -> dict[str, Any]:
    """What a clip's bits depend on besides its job."""
    names = {kind: name for name, kind in DTYPES.items()}
    if model.device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32:
        names[torch.float32] = TF32
    return {
        "device": str(model.device),
        "dtype": names[model.dtype],
        "kernels": kernels_of(model),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
    }
