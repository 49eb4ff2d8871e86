"""LoRAs merged into weights: `W += scale * change`, in fp32, whatever the file's dialect.

Several add up, and their order does not matter beyond rounding, except for forms that change the
weight that they find by its own values: DoRA, GLoRA, IA3, OFT, BOFT.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...motion import MotionModule
from .files import open_lora
from .layers import Deltas, Layer, Layers, image_deltas, image_layers, layers_of, motion_deltas
from .math import Delta, changed_weight

log = logging.getLogger(__name__)


def apply_lora(target: Any, path: str | Path, scale: float = 1.0) -> int:
    """Merge a LoRA into a UNet, a BaseModel or a diffusers pipeline; returns the layers changed.

    Raises CheckpointError if it changes nothing, is of another family, or if some of its layers
    match nothing: named. At scale 0 the file is checked and the model stays as it is. Embeddings
    in the file are left out, with a warning.
    """
    info = open_lora(Path(path))
    if info is not None and "embeddings" in info.details:
        log.warning("%s: its embeddings (%s) are left out", path, info.details["embeddings"])
    return apply_loras(target, [(Path(path), scale)])[0]


def apply_motion_lora(motion: MotionModule, path: str | Path, scale: float = 1.0) -> int:
    """Merge a MotionLoRA into a motion module; returns the layers changed (a full v2 file: 168).

    Layers for a mid block that the module lacks are left out, with a warning that says so.
    """
    return apply_loras(motion, [(Path(path), scale)])[0]


def apply_loras(
    target: Any, adapters: Sequence[tuple[Path, float]], dtype: torch.dtype | None = None
) -> list[int]:
    """Merge several LoRAs, or MotionLoRAs into a motion module; returns the layers changed by each.

    Every weight is computed in fp32 and rounded once, to `dtype` (by default its own).
    """
    if isinstance(target, MotionModule):
        layers: Layers = layers_of(target)
        changes = [(motion_deltas(target, path), scale) for path, scale in adapters]
    else:
        layers = image_layers(target)
        changes = [(image_deltas(target, path), scale) for path, scale in adapters]
    _merge(layers, changes, dtype)
    return [len(deltas) for deltas, _ in changes]


def _merge(
    layers: Layers, changes: Sequence[tuple[Deltas, float]], dtype: torch.dtype | None
) -> None:
    """Change one layer after the other, each by all files."""
    by_layer: dict[Layer, list[tuple[Delta, float]]] = {}
    for deltas, scale in changes:
        for name, delta in deltas.items():
            if scale != 0:
                by_layer.setdefault(layers[name], []).append((delta, scale))
    for layer, layer_changes in by_layer.items():
        _change(layer, layer_changes, dtype)


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
