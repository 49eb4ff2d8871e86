"""LoRAs merged into weights: `W += scale * change`, in fp32, whatever the file's dialect.

Several add up, and their order does not matter beyond rounding; DoRA alone sets the length of the
weight that it finds, so its position among others does.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...checkpoints.families import FOLDERS, family_of_unet, unet_shape
from ...checkpoints.file_report import require, wrong_family
from ...checkpoints.sd_names import original_layers
from ...errors import CheckpointError
from ...motion import MotionModule
from ...weights.weight_file import open_weights
from .files import LoraInfo, read_lora, recognise_lora
from .math import Delta, changed_weight, product

log = logging.getLogger(__name__)

Layer = nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm
Layers = Mapping[str, Layer]


@dataclass(frozen=True)
class _File:
    """A LoRA to merge."""

    path: Path
    deltas: Mapping[str, Delta]
    """By plain name of the layer."""
    scale: float


def apply_lora(target: Any, path: str | Path, scale: float = 1.0) -> int:
    """Merge a LoRA into a UNet, a BaseModel or a diffusers pipeline; returns the layers changed.

    Raises CheckpointError if it changes nothing, is of another family, or if some of its layers
    fit nothing: named. At scale 0 the file is checked and the model stays as it is.
    """
    return apply_loras(target, [(Path(path), scale)])[0]


def apply_loras(
    target: Any, adapters: Sequence[tuple[Path, float]], dtype: torch.dtype | None = None
) -> list[int]:
    """Merge several LoRAs, each with its scale; returns the layers changed by each.

    Every weight is computed in fp32 and rounded once, to `dtype` (by default its own).
    """
    unet = target if isinstance(target, nn.Module) else target.unet
    files = []
    for path, scale in adapters:
        deltas = image_deltas(unet, path)
        if isinstance(target, nn.Module) and any(n.startswith(("te1_", "te2_")) for n in deltas):
            raise CheckpointError(
                f"{path}: changes the text encoder too, which a UNet alone lacks; "
                "give the whole pipeline"
            )
        files.append(_File(path, deltas, scale))
    return _merge(_targets(target), files, "use a LoRA of the base model's family", dtype)


def apply_motion_lora(motion: MotionModule, path: str | Path, scale: float = 1.0) -> int:
    """Merge a MotionLoRA into a motion module; returns the layers changed (a full v2 file: 168).

    Layers for a mid block that the module lacks are left out, with a warning that says so.
    """
    return apply_motion_loras(motion, [(Path(path), scale)])[0]


def apply_motion_loras(
    motion: MotionModule, adapters: Sequence[tuple[Path, float]], dtype: torch.dtype | None = None
) -> list[int]:
    """Merge several MotionLoRAs, each with its scale; returns the layers changed by each.

    Every weight is computed in fp32 and rounded once, to `dtype` (by default its own).
    """
    files = [_File(path, _motion_deltas(motion, path), scale) for path, scale in adapters]
    hint = "use a MotionLoRA made for a module of the same family"
    return _merge(_layers_of(motion, ""), files, hint, dtype)


def _motion_deltas(motion: MotionModule, path: Path) -> dict[str, Delta]:
    deltas = read_lora(require(recognise_lora(open_weights(path)), "motion_loras", path))
    middle = [name for name in deltas if name.startswith("mid_block")]
    if motion.mid_block is None and middle:
        message = "%s: %d layers for a mid block, which this module lacks, are left out"
        log.warning(message, path, len(middle))
        deltas = {name: delta for name, delta in deltas.items() if name not in middle}
        if not deltas:
            raise CheckpointError(
                f"{path}: changes only the mid block, which this {motion.config.version} module "
                "lacks; use it with a v2 module"
            )
    return deltas


def image_deltas(unet: Any, path: Path) -> dict[str, Delta]:
    """The layers of a LoRA for the image model, by diffusers' plain names."""
    info = require(recognise_lora(open_weights(path)), "loras", path)
    _check_family(info, unet, path)
    names = original_layers(unet)
    return {names.get(name, name): delta for name, delta in read_lora(info).items()}


def _check_family(info: LoraInfo, unet: Any, path: Path) -> None:
    """Reject what was made for another family; if the file does not say it, shapes decide."""
    if info.family == "unknown":
        return
    family, width = family_of_unet(unet), unet.config.cross_attention_dim
    own_size = family not in FOLDERS and info.family in FOLDERS
    if family != info.family and not (own_size and unet_shape(info.family)[1] == width):
        raise wrong_family(info, family, path)


def _targets(target: Any) -> dict[str, Layer]:
    """Each layer that a LoRA could change, by its plain name."""
    if isinstance(target, nn.Module):
        return _layers_of(target, "")
    layers = _layers_of(target.unet, "")
    encoders = getattr(target, "text_encoders", None)
    if encoders is None:
        encoders = [getattr(target, n, None) for n in ("text_encoder", "text_encoder_2")]
    for number, encoder in enumerate((e for e in encoders if e is not None), start=1):
        layers |= _layers_of(encoder, f"te{number}_")
    return layers


def _layers_of(model: nn.Module, prefix: str) -> dict[str, Layer]:
    layers: dict[str, Layer] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm):
            layers[prefix + name.replace(".", "_")] = layer
            if prefix and not name.startswith("text_model."):
                layers[f"{prefix}text_model_{name.replace('.', '_')}"] = layer
    return layers


def _merge(
    layers: Layers, files: Sequence[_File], hint: str, dtype: torch.dtype | None
) -> list[int]:
    """Check every layer of every file, then change one after the other."""
    for file in files:
        _check_file(layers, file, hint)
    changes: dict[Layer, list[tuple[Delta, float]]] = {}
    for file in files:
        for name, delta in file.deltas.items():
            if file.scale != 0:
                changes.setdefault(layers[name], []).append((delta, file.scale))
    for layer, deltas in changes.items():
        _change(layer, deltas, dtype)
    return [len(file.deltas) for file in files]


def _check_file(layers: Layers, file: _File, hint: str) -> None:
    path, deltas = file.path, file.deltas
    missing = sorted(name for name in deltas if name not in layers)
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} of its {len(deltas)} layers match nothing in this model, "
            f"first {', '.join(missing[:3])}; {hint}"
        )
    for name, delta in deltas.items():
        _check_fit(layers[name], name, delta, path)
    if all(delta.changes_nothing() for delta in deltas.values()):
        raise CheckpointError(
            f"{path}: changes nothing, its {len(deltas)} layers are all zero; "
            "it was saved before it learned anything"
        )


def _check_fit(layer: Layer, name: str, delta: Delta, path: Path) -> None:
    """The change has the layer's shape and only numbers; shapes are computed without data."""
    if layer.weight.is_mkldnn:  # packed by `optimize`
        raise CheckpointError(
            f"{path}: the model is optimised, so its weights cannot be changed; apply adapters "
            "before optimize(), or call deflate() first"
        )
    without_data = replace(delta, factors={role: t.to("meta") for role, t in delta.factors.items()})
    bias = delta.factors.get("diff_b")
    try:
        if delta.weight_roles:
            changed_weight(torch.empty_like(layer.weight, device="meta"), without_data, 1.0)
        if bias is not None and (layer.bias is None or bias.numel() != layer.bias.numel()):
            raise ValueError("its bias")
        size = product(without_data).numel() if delta.weight_roles else layer.weight.numel()
        if size != layer.weight.numel():
            raise ValueError("its size")
    except (RuntimeError, ValueError, IndexError, CheckpointError) as error:
        raise CheckpointError(
            f"{path}: {name} has the shape of another family of models; "
            "use a LoRA of the base model's family"
        ) from error
    if not all(bool(tensor.isfinite().all()) for tensor in delta.factors.values()):
        raise CheckpointError(f"{path}: {name} holds values that are no numbers; use another file")


@torch.no_grad()
def _change(layer: Layer, deltas: Sequence[tuple[Delta, float]], dtype: torch.dtype | None) -> None:
    """Add changes to a layer's weight and bias in fp32, in their order."""
    weight, bias = layer.weight, layer.bias
    for delta, scale in deltas:
        if delta.weight_roles:
            weight = changed_weight(weight, delta, scale)
        if "diff_b" in delta.factors and bias is not None:
            change = delta.factors["diff_b"].float().to(bias.device).view(bias.shape)
            bias = bias.float() + scale * change
    for parameter, changed in ((layer.weight, weight), (layer.bias, bias)):
        if parameter is None or changed is None or changed is parameter:
            continue
        if dtype in (None, parameter.dtype):
            parameter.copy_(changed)
        else:
            parameter.data = changed.to(dtype)
