"""The layers of a model that a LoRA changes: found by name, of its family, of its shapes."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...checkpoints.families import FOLDERS, family_of_unet, unet_shape
from ...checkpoints.file_report import require, wrong_family
from ...checkpoints.sd_names import original_layers
from ...errors import CheckpointError
from ...motion import MotionModule
from ...weights.safetensors_file import headers_only
from .files import LoraInfo, open_lora, read_lora
from .math import Delta, changed_weight

log = logging.getLogger(__name__)

Layer = nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm
Layers = Mapping[str, Layer]
_UNREAD = "te1_text_projection"
Deltas = dict[str, Delta]
"""The changes of a file, by plain name of the layer."""


def image_deltas(target: Any, path: Path) -> Deltas:
    """The changes of a LoRA for a UNet, BaseModel or pipeline; each fits a layer of it.

    Raises CheckpointError if the file is something else, of another family, or changes nothing.
    """
    unet = target if isinstance(target, nn.Module) else target.unet
    info = require(open_lora(path), "loras", path)
    _check_family(info, unet, path)
    names = original_layers(unet)
    deltas = {names.get(name, name): delta for name, delta in read_lora(info).items()}
    if isinstance(target, nn.Module) and any(n.startswith(("te1_", "te2_")) for n in deltas):
        raise CheckpointError(
            f"{path}: changes the text encoder too, which a UNet alone lacks; "
            "give the whole pipeline"
        )
    layers = image_layers(target)
    if _UNREAD in deltas and _UNREAD not in layers:
        del deltas[_UNREAD]
        message = "%s: the projection of the first text encoder is left out; no frame depends on it"
        if not headers_only():
            log.warning(message, path)
    _check_fits(layers, deltas, path, "a LoRA of the base model's family")
    return deltas


def motion_deltas(motion: MotionModule, path: Path) -> Deltas:
    """The changes of a MotionLoRA for a motion module; each fits a layer of it.

    Layers for a mid block that the module lacks are left out, with a warning that says so.
    """
    deltas = read_lora(require(open_lora(path), "motion_loras", path))
    middle = [name for name in deltas if name.startswith("mid_block")]
    if motion.mid_block is None and middle:
        message = "%s: %d layers for a mid block, which this module lacks, are left out"
        if not headers_only():
            log.warning(message, path, len(middle))
        deltas = {name: delta for name, delta in deltas.items() if name not in middle}
        if not deltas:
            raise CheckpointError(
                f"{path}: changes only the mid block, which this {motion.config.version} module "
                "lacks; use it with a v2 module"
            )
    made_for = "a MotionLoRA made for a module of the same family"
    _check_fits(layers_of(motion), deltas, path, made_for)
    return deltas


def image_layers(target: Any) -> dict[str, Layer]:
    """Each layer of a UNet, BaseModel or pipeline that a LoRA could change, by its plain name."""
    if isinstance(target, nn.Module):
        return layers_of(target)
    layers = layers_of(target.unet)
    encoders = getattr(target, "text_encoders", None)
    if encoders is None:
        encoders = [getattr(target, n, None) for n in ("text_encoder", "text_encoder_2")]
    for number, encoder in enumerate((e for e in encoders if e is not None), start=1):
        layers |= layers_of(encoder, f"te{number}_")
    return layers


def layers_of(model: nn.Module, prefix: str = "") -> dict[str, Layer]:
    """Each layer of one model that a LoRA could change, by its plain name."""
    layers: dict[str, Layer] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm):
            layers[prefix + name.replace(".", "_")] = layer
            if prefix and not name.startswith("text_model."):
                layers[f"{prefix}text_model_{name.replace('.', '_')}"] = layer
    return layers


def _check_family(info: LoraInfo, unet: Any, path: Path) -> None:
    """Reject what was made for another family; if the file does not say it, shapes decide."""
    if info.family == "unknown":
        return
    family, width = family_of_unet(unet), unet.config.cross_attention_dim
    own_size = family not in FOLDERS and info.family in FOLDERS
    if family != info.family and not (own_size and unet_shape(info.family)[1] == width):
        raise wrong_family(info, family, path)


def _check_fits(layers: Layers, deltas: Deltas, path: Path, made_for: str) -> None:
    """Every change has its layer and that layer's shape, and one of them is not zero."""
    if missing := sorted(deltas.keys() - layers.keys()):
        raise CheckpointError(
            f"{path}: {len(missing)} of its {len(deltas)} layers match nothing in this model, "
            f"first {', '.join(missing[:3])}; use {made_for}"
        )
    for name, delta in deltas.items():
        _check_fit(layers[name], name, delta, path)
    if not headers_only() and all(delta.changes_nothing() for delta in deltas.values()):
        raise CheckpointError(
            f"{path}: changes nothing, its {len(deltas)} layers are all zero; "
            "it was saved before it learned anything"
        )


def _check_fit(layer: Layer, name: str, delta: Delta, path: Path) -> None:
    """The change has the layer's shape and only numbers; shapes are computed without data."""
    without_data = replace(delta, factors={role: t.to("meta") for role, t in delta.factors.items()})
    bias = delta.factors.get("diff_b")
    try:
        if delta.weight_roles:
            changed_weight(torch.empty(layer.weight.shape, device="meta"), without_data, 1.0)
        if bias is not None and (layer.bias is None or bias.numel() != layer.bias.numel()):
            raise ValueError("its bias")
    except (RuntimeError, ValueError, IndexError, ZeroDivisionError, CheckpointError) as error:
        raise CheckpointError(
            f"{path}: {name} has the shape of another family of models; "
            "use a LoRA of the base model's family"
        ) from error
    if not headers_only() and not all(
        bool(tensor.isfinite().all()) for tensor in delta.factors.values()
    ):
        raise CheckpointError(f"{path}: {name} holds values that are no numbers; use another file")
