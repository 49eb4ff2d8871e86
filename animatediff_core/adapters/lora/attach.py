"""LoRAs attached to an animated UNet: each adds its change to its layers' outputs, scaled by frame.

Legend: b batch, f frames, r rank, o outputs, i inputs, k l kernel.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...checkpoints.base_model import BaseModel
from ...errors import CheckpointError
from ...motion import CallState
from .layers import Layer, image_deltas, image_layers
from .math import Delta, changed_weight, product

log = logging.getLogger(__name__)


def attach_lora(base: BaseModel, call: CallState, path: Path, number: int) -> Callable[[], None]:
    """Attach a LoRA to an animated UNet that has plain weights; the result detaches it.

    Its scale by frame is entry `number` of `lora_weights` in the conditions of each call. Layers of
    text encoders are left out, with a warning. Raises CheckpointError as `apply_lora`, and for
    layers whose change cannot be scaled by frame.
    """
    deltas, layers = image_deltas(base, path), image_layers(base)
    text = [name for name in deltas if name.startswith(("te1_", "te2_"))]
    if text:
        message = "%s: has weights by frame, so its %d layers of text encoders are left out"
        log.warning(message, path, len(text))
    changes = [
        (layers[name], _change(layers[name], delta, base.unet.device, base.unet.dtype, path))
        for name, delta in deltas.items()
        if name not in text
    ]
    handles = [
        layer.register_forward_hook(_LoraHook(call, number, change)) for layer, change in changes
    ]

    def detach() -> None:
        for handle in handles:
            handle.remove()

    return detach


def check_by_frame(base: BaseModel, path: Path) -> None:
    """Raise CheckpointError if a LoRA changes norms, which cannot be scaled by frame."""
    layers = image_layers(base)
    for name in image_deltas(base, path):
        if not name.startswith(("te1_", "te2_")):
            _check_scalable(layers[name], path)


@dataclass
class _LoraHook:
    """After a layer: adds the change of its output, scaled by frame."""

    call: CallState
    number: int
    change: Callable[[Tensor], Tensor]

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        weights, frames = self.call.conditions.lora_weights, self.call.frames
        if frames is None or self.number >= len(weights):
            return output
        scale = weights[self.number].to(output).repeat(len(output) // frames)  # (b f)
        return output + self.change(inputs[0]) * scale.view(-1, *[1] * (output.ndim - 1))


def _change(
    layer: Layer, delta: Delta, device: torch.device, dtype: torch.dtype, path: Path
) -> Callable[[Tensor], Tensor]:
    """From a layer's input to the change of its output at scale 1."""
    layer = _check_scalable(layer, path)
    bias = delta.factors.get("diff_b")
    bias = None if bias is None else bias.to(device, dtype).flatten()
    if set(delta.weight_roles) != {"up", "down"} or delta.reads_weight:
        weight = _full_change(layer, delta, path).to(device, dtype)
        return lambda x: _apply(layer, x, weight, bias)
    down = delta.factors["down"].to(device, dtype)
    rank = len(down)
    up = (delta.factors["up"].flatten(1) * delta.scale).to(device, dtype)  # o r
    down = down.view(rank, *layer.weight.shape[1:])  # r i, or r i k l
    if isinstance(layer, nn.Linear):
        return lambda x: F.linear(F.linear(x, down), up, bias)
    return lambda x: F.conv2d(_apply(layer, x, down, None), up[:, :, None, None], bias)


def _check_scalable(layer: Layer, path: Path) -> nn.Linear | nn.Conv2d:
    """The layer, unless it is a norm."""
    if isinstance(layer, nn.Linear | nn.Conv2d):
        return layer
    raise CheckpointError(
        f"{path}: changes norms, which cannot be scaled by frame; leave weights out"
    )


def _full_change(layer: nn.Linear | nn.Conv2d, delta: Delta, path: Path) -> Tensor:
    """The change of the weight at scale 1, o i or o i k l."""
    if not delta.weight_roles:
        return torch.zeros(layer.weight.shape)
    if not delta.reads_weight:
        return product(delta, layer.weight).view(layer.weight.shape)
    if not delta.is_linear:
        raise CheckpointError(
            f"{path}: is an OFT in stages or with lengths, which cannot be scaled by frame; leave "
            "weights out"
        )
    if layer.weight.is_meta:
        raise CheckpointError(
            f"{path}: changes weights by their own values (DoRA, GLoRA, IA3, OFT), so it needs all "
            "weights on the device to be scaled by frame; leave weights or --low-vram out"
        )
    return changed_weight(layer.weight, delta, 1.0) - layer.weight.float()


def _apply(layer: nn.Linear | nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The layer's operation with other weights."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    assert not isinstance(layer.padding, str)
    return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
