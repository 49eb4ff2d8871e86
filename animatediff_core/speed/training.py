"""The training step with less work and less memory: the same gradients.

A frozen convolution keeps no input for its backward, a gated unit keeps what its projection gave and
nothing more, and the text, which all frames of a clip share, is projected once for all of them.

Legend: b batch, f frames, n tokens, d features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models import ControlNetModel, UNet2DConditionModel
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from ..motion import AnimatedUNet
from ..motion.module import GatedLinear


def quicken_training(
    model: AnimatedUNet | UNet2DConditionModel | ControlNetModel,
) -> Callable[[], None]:
    """Put leaner forwards and backwards onto a loaded model that learns.

    Weights stay as they are. What is returned undoes it, and so does `deflate`.
    """
    animated = model if isinstance(model, AnimatedUNet) else None
    changed: list[nn.Module] = []

    def replace(module: nn.Module, forward: Callable[..., Tensor]) -> None:
        module.__dict__["forward"] = forward
        changed.append(module)

    def undo() -> None:
        while changed:
            changed.pop().__dict__.pop("forward", None)

    for module in list(model.modules()):
        if isinstance(module, (GEGLU, GatedLinear)):
            replace(module, _Gated(module).forward)
        elif type(module) is nn.Conv2d and not module.weight.requires_grad:
            replace(module, _FrozenConvolution(module).forward)
        elif animated is not None and isinstance(module, Attention) and module.is_cross_attention:
            for layer in (module.to_k, module.to_v):
                replace(layer, _TextLinear(layer, animated).forward)
    if animated is not None:
        animated.at_deflate(undo)
    return undo


@dataclass
class _FrozenConvolution:
    layer: nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        """As the layer's own."""
        own = self.layer
        fits = own.padding_mode == "zeros" and not isinstance(own.padding, str)
        learns = x.requires_grad and torch.is_grad_enabled()
        if not (fits and learns) or x.dtype != own.weight.dtype:
            return type(own).forward(own, x)
        if torch.is_autocast_enabled(x.device.type):
            return type(own).forward(own, x)
        out: Tensor = _Convolve.apply(x, own)
        return out


@dataclass
class _TextLinear:
    """Keys or values of the text: made once for all frames that share it."""

    layer: nn.Linear
    animated: AnimatedUNet

    def forward(self, x: Tensor) -> Tensor:
        """x: (b f) n d."""
        text, own = self.animated.shared_text(), self.layer
        if text is None or x.shape[1:] != text.shape[1:] or x.shape[0] % text.shape[0]:
            return type(own).forward(own, x)
        once = type(own).forward(own, text)
        return once.repeat_interleave(x.shape[0] // text.shape[0], 0)


@dataclass
class _Gated:
    """A projection to values and gates, and their product."""

    layer: Any

    def forward(self, x: Tensor) -> Tensor:
        """As the layer's own."""
        out: Tensor = _Gate.apply(self.layer.proj(x))
        return out


class _Convolve(torch.autograd.Function):
    """A frozen convolution, which needs no input for its backward and so keeps none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Conv2d) -> Tensor:
        ctx.layer, ctx.shape = layer, x.shape
        return type(layer).forward(layer, x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,), own = gradients, ctx.layer
        stand_in = gradient.new_empty(1).expand(ctx.shape)  # of the input only the shape is read
        to_x, _, _ = torch.ops.aten.convolution_backward(
            gradient, stand_in, own.weight, None, own.stride, own.padding, own.dilation,
            False, [0, 0], own.groups, [True, False, False],
        )  # fmt: skip
        return to_x, None


class _Gate(torch.autograd.Function):
    """values * gelu(gates), both halves of the last axis."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        value, gate = both.chunk(2, -1)
        return F.gelu(gate).mul_(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,), (both,) = gradients, ctx.saved_tensors
        value, gate = both.chunk(2, -1)
        out = torch.empty_like(both)
        to_value, to_gate = out.chunk(2, -1)
        torch.mul(gradient, F.gelu(gate), out=to_value)
        torch.ops.aten.gelu_backward(gradient * value, gate, grad_input=to_gate)
        return out
