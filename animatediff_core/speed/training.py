"""The training step on the CPU: the same gradients from kernels that suit it.

Matrix products go to the library that suits the processor, wide frozen convolutions and their
gradients to Winograd's filtering, and the text, which all frames of a clip share, is projected once
for all of them. Frozen layers hold nothing for their backward, so that a block that is recomputed
ends at the last layer that does.

Legend: b batch, f frames, n tokens, d features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from diffusers.models import ControlNetModel, UNet2DConditionModel
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from ..motion import AnimatedUNet
from ..motion.module import _GatedLinear
from . import winograd
from .packing import can_pack


def quicken_training(
    model: AnimatedUNet | UNet2DConditionModel | ControlNetModel,
) -> Callable[[], None]:
    """Put faster forwards and backwards onto a loaded model that learns on the CPU, in fp32.

    Weights stay as they are. What is returned undoes it, and so does `deflate`; where the device
    or the build of torch has no such kernels nothing changes.
    """
    animated = model if isinstance(model, AnimatedUNet) else None
    changed: list[nn.Module] = []

    def replace(module: nn.Module, forward: Callable[..., Tensor]) -> None:
        module.__dict__["forward"] = forward
        changed.append(module)

    def undo() -> None:
        while changed:
            changed.pop().__dict__.pop("forward", None)

    if not can_pack(next(model.parameters())):
        return undo
    for module in list(model.modules()):
        if type(module) is nn.Linear:
            replace(module, _Linear(module).forward)
        elif isinstance(module, (GEGLU, _GatedLinear)):
            replace(module, _Gated(module).forward)
        elif type(module) is nn.Conv2d and not module.weight.requires_grad:
            replace(module, _FrozenConvolution(module).forward)
    for module in model.modules():
        if animated is not None and isinstance(module, Attention) and module.is_cross_attention:
            for layer in (module.to_k, module.to_v):
                replace(layer, _TextLinear(layer, animated).forward)
    if animated is not None:
        animated.at_deflate(undo)
    return undo


@dataclass
class _Linear:
    layer: nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        """As the layer's own."""
        weight, bias = self.layer.weight, self.layer.bias
        if x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return F.linear(x, weight, bias)
        if not torch.is_grad_enabled():
            out = _multiply(x.flatten(0, -2), weight, bias)
        else:
            out = _Product.apply(x.flatten(0, -2), weight, bias)
        whole: Tensor = out.unflatten(0, x.shape[:-1])
        return whole


@dataclass
class _FrozenConvolution:
    layer: nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        """As the layer's own."""
        kept = self.layer
        fits = kept.padding_mode == "zeros" and not isinstance(kept.padding, str)
        exact = x.dtype == kept.weight.dtype == torch.float32
        if not (fits and exact) or torch.is_autocast_enabled("cpu"):
            return type(kept).forward(kept, x)
        if not (x.requires_grad and torch.is_grad_enabled()):
            return _convolve(kept, x)
        out: Tensor = _Convolve.apply(x, kept)
        return out


@dataclass
class _TextLinear:
    """Keys or values of the text: made once for all frames that share it."""

    layer: nn.Linear
    animated: AnimatedUNet

    def forward(self, x: Tensor) -> Tensor:
        """x: (b f) n d."""
        text = self.animated.call.text
        plain = _Linear(self.layer).forward
        if text is None or x.shape[1:] != text.shape[1:] or x.shape[0] % text.shape[0]:
            return plain(x)
        return plain(text).repeat_interleave(x.shape[0] // text.shape[0], 0)


@dataclass
class _Gated:
    """A projection to values and gates, and their product."""

    layer: Any

    def forward(self, x: Tensor) -> Tensor:
        """As the layer's own."""
        out: Tensor = _Gate.apply(self.layer.proj(x))
        return out


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias, of two matrices: by MKL on the processors that it is made for, those
    with tiles, and by oneDNN on others."""
    if _suits_mkl():
        return F.linear(x, weight, bias)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


@cache
def _suits_mkl() -> bool:
    return torch.backends.mkl.is_available() and torch.cpu._is_amx_tile_supported()


class _Product(torch.autograd.Function):
    """x @ weight.T + bias; where the weight is frozen nothing is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        learns = ctx.needs_input_grad[1]
        ctx.save_for_backward(*((x, weight) if learns else ()))
        ctx.frozen = None if learns else weight
        return _multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors if ctx.frozen is None else (None, ctx.frozen)
        to_x = _multiply(gradient, weight.t()) if ctx.needs_input_grad[0] else None
        to_weight = None
        if x is not None:
            wide = gradient.shape[1] > x.shape[1]  # oneDNN is the faster one for wide results only
            wide = wide and not _suits_mkl()
            to_weight = _multiply(x.t(), gradient.t()).t() if wide else gradient.t() @ x
        return to_x, to_weight, gradient.sum(0) if ctx.needs_input_grad[2] else None


def _convolve(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """What the layer makes of x, laid out plainly as x is: torch 2.13 crashes in the backward of a
    frozen GroupNorm of channels-last features."""
    if not winograd.pays(layer, x):
        return type(layer).forward(layer, x)
    given = x.contiguous(memory_format=torch.channels_last)
    return winograd.convolve(given, layer.weight, layer.bias).contiguous()


class _Convolve(torch.autograd.Function):
    """A frozen convolution, which needs no input for its backward and so keeps none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Conv2d) -> Tensor:
        ctx.layer, ctx.shape = layer, x.shape
        return _convolve(layer, x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        kept = ctx.layer
        if winograd.pays(kept, gradient):
            given = gradient.contiguous(memory_format=torch.channels_last)
            moved = winograd.convolve(given, kept.weight, None, transposed=True)
            return moved.contiguous(), None
        stand_in = gradient.new_empty(1).expand(ctx.shape)  # of the input only the shape is read
        to_x, _, _ = torch.ops.aten.convolution_backward(
            gradient, stand_in, kept.weight, None, kept.stride, kept.padding, kept.dilation,
            False, [0, 0], kept.groups, [True, False, False],
        )  # fmt: skip
        return to_x, None


class _Gate(torch.autograd.Function):
    """values * gelu(gates), both halves of the last axis."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        value, gate = both.chunk(2, -1)
        active = F.gelu(gate)
        ctx.save_for_backward(both, active)
        return active * value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        both, active = ctx.saved_tensors
        value, gate = both.chunk(2, -1)
        out = torch.empty_like(both)
        to_value, to_gate = out.chunk(2, -1)
        torch.mul(gradient, active, out=to_value)
        torch.ops.aten.gelu_backward(gradient * value, gate, grad_input=to_gate)
        return out
