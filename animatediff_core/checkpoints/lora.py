"""Adapters merged into weights: `W += scale * change`, in fp32, whatever the file's dialect."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import CheckpointError
from ..motion import MotionModule
from .files import read_tensors
from .lora_files import read_deltas
from .lora_math import Delta, product

log = logging.getLogger(__name__)


def apply_lora(target: Any, path: str | Path, scale: float = 1.0) -> int:
    """Merge a LoRA into a UNet, a BaseModel or a diffusers pipeline; returns the layers changed.

    CheckpointError where it changes nothing, or where some of its layers fit nothing: named.
    """
    path = Path(path)
    tensors = read_tensors(path).tensors
    if any("motion_modules." in key for key in tensors):
        what = "MotionLoRA, which goes into motion_loras (--motion-lora)"
        if not any("lora" in key for key in tensors):
            what = "motion module, which goes into motion (--motion)"
        raise CheckpointError(f"{path}: is no LoRA for the image model but a {what}")
    return _merge(_targets(target), read_deltas(tensors, path), path, scale)


def apply_motion_lora(motion: MotionModule, path: str | Path, scale: float = 1.0) -> int:
    """Merge a MotionLoRA into a motion module; returns the layers changed (a full v2 file: 168).

    Layers for a mid block that the module lacks are left out, with a warning that says so.
    """
    path = Path(path)
    tensors = read_tensors(path).tensors
    if not any("motion_modules." in key and "lora" in key for key in tensors):
        what = "a LoRA for the image model, which goes into loras (--lora)"
        if any("motion_modules." in key for key in tensors):
            what = "a motion module, which goes into motion (--motion)"
        elif not any("lora" in key for key in tensors):
            what = "something else; `animatediff inspect` says what"
        raise CheckpointError(f"{path}: is no MotionLoRA but {what}")
    deltas = read_deltas(tensors, path)
    if motion.mid_block is None and (mid := [k for k in deltas if k.startswith("mid_block")]):
        log.warning("%s: %d layers for a mid block, which this module lacks, are left out",
                    path, len(mid))  # fmt: skip
        deltas = {k: d for k, d in deltas.items() if k not in mid}
    return _merge(_layers_of(motion, ""), deltas, path, scale)


def _targets(target: Any) -> dict[str, nn.Linear | nn.Conv2d]:
    """Every layer that a LoRA could change, by its plain name."""
    if isinstance(target, nn.Module):
        return _layers_of(target, "")
    layers = _layers_of(target.unet, "")
    encoders = getattr(target, "text_encoders", None)
    if encoders is None:
        encoders = [getattr(target, n, None) for n in ("text_encoder", "text_encoder_2")]
    for number, encoder in enumerate((e for e in encoders if e is not None), start=1):
        layers |= _layers_of(encoder, f"te{number}_")
    return layers


def _layers_of(model: nn.Module, prefix: str) -> dict[str, nn.Linear | nn.Conv2d]:
    layers: dict[str, nn.Linear | nn.Conv2d] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            plain = prefix + name.replace(".", "_")
            layers[plain] = layer
            if prefix and not name.startswith("text_model."):
                layers[f"{prefix}text_model_{name.replace('.', '_')}"] = layer
    return layers


def _merge(
    layers: Mapping[str, nn.Linear | nn.Conv2d],
    deltas: Mapping[str, Delta],
    path: Path,
    scale: float,
) -> int:
    missing = sorted(name for name in deltas if name not in layers)
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} of its {len(deltas)} layers fit nothing in this model, first "
            f"{missing[0]}; use a LoRA of the base model's family"
        )
    changes = []
    for name, delta in deltas.items():
        layer = layers[name]
        change = product(delta)
        if change.numel() != layer.weight.numel():
            raise CheckpointError(
                f"{path}: {name} has the shape of another family of models; "
                "use a LoRA of the base model's family"
            )
        changes.append((layer, change.view(layer.weight.shape)))
    with torch.no_grad():
        for layer, change in changes:
            weight = layer.weight
            weight.copy_((weight.float() + scale * change.to(weight.device)).to(weight.dtype))
    return len(changes)
