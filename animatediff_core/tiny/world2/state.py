"""The family's weights as fp16 files of at most 16 MB each, and how far each stage is."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ...weights.files import write_tensors

LIMIT = (16 << 20) - (1 << 18)
"""Bytes of tensors in one file."""


def save_part(folder: Path, name: str, tensors: Mapping[str, Tensor], notes: object) -> None:
    """Write NAME.1.safetensors, NAME.2.safetensors and so on, with notes in the metadata."""
    files: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, tensor in tensors.items():
        half = tensor.detach().half().cpu().contiguous()
        if size + half.nbytes > LIMIT:
            files.append({})
            size = 0
        files[-1][key] = half
        size += half.nbytes
    for number, content in enumerate(files, 1):
        path = folder / f"{name}.{number}.safetensors"
        write_tensors(path, content, {"notes": json.dumps(notes)})


def load_part(folder: Path, name: str, module: nn.Module) -> dict[str, float] | None:
    """Put the saved weights into a module; returns their notes, None where there are none."""
    weights: dict[str, Tensor] = {}
    notes = None
    for path in sorted(folder.glob(f"{name}.*.safetensors")):
        with safe_open(path, "pt") as file:
            notes = json.loads(file.metadata()["notes"])
            weights |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if notes is None:
        return None
    with torch.no_grad():
        found = dict(module.named_parameters())
        if found.keys() != weights.keys():
            raise ValueError(f"{folder}: the files of {name} are of other sizes; remove them")
        for key, parameter in found.items():
            parameter.copy_(weights[key])
    return dict(notes)
