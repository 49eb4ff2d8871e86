"""Weights in the blocked layout of the CPU's matrix kernels, in place of the plain ones.

oneDNN multiplies fastest by weights that are blocked for the processor. torch blocks them anew in
each call (convolutions) or takes another library's kernels (fp32 linears); here each weight is
blocked once and the plain copy is given up. The parameter stays in its place under its name, as a
tensor of layout `torch._mkldnn`: whoever would add to it, move it or train it gets an error, never
a wrong number. `state_dict` gives plain tensors.

Legend: i o input and output features, k l kernel.
"""

from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import AnimateDiffError

_BLOCK = 64
"""Convolutions whose channels are multiples of it have one blocked layout for every input size;
of others the layout depends on the size, and a change of layout in each call costs more than it
saves."""


def can_pack(weight: Tensor) -> bool:
    """Whether this build of torch has the kernels for such a weight."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    ops = torch.ops.mkldnn
    names = ("_reorder_linear_weight", "_linear_pointwise", "_reorder_convolution_weight",
             "_convolution_pointwise")  # fmt: skip
    if not all(hasattr(ops, name) for name in names):
        return False
    if weight.dtype == torch.bfloat16:
        return bool(ops._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def pack_linear(layer: nn.Linear) -> None:
    """A linear layer's weight, o i, blocked."""
    _replace(layer, torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach()))
    layer.forward = MethodType(_linear_forward, layer)  # type: ignore[method-assign]


def pack_gated(layer: nn.Linear) -> None:
    """The linear layer of a GEGLU: its halves, values and gates, are blocked apart."""
    shape = layer.weight.shape
    values, gates = (
        torch.ops.mkldnn._reorder_linear_weight(half.contiguous())
        for half in layer.weight.detach().chunk(2)
    )
    _replace(layer, values, shape)
    layer.register_buffer("gates", gates, persistent=False)
    layer.forward = MethodType(_linear_forward, layer)  # type: ignore[method-assign]


def pack_convolution(layer: nn.Conv2d) -> bool:
    """A convolution's weight, o i k l, blocked where its channels allow it; tells whether it was.

    A kernel of 1 x 1 becomes a linear layer over pixels.
    """
    weight = layer.weight.detach()
    plain = layer.groups == 1 and layer.padding_mode == "zeros" and layer.padding != "same"
    if not plain:
        return False
    one = layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.padding == (0, 0)
    if one:
        _replace(layer, torch.ops.mkldnn._reorder_linear_weight(weight.flatten(1)), weight.shape)
        layer.forward = MethodType(_pixel_forward, layer)  # type: ignore[method-assign]
        return True
    if weight.shape[0] % _BLOCK or weight.shape[1] % _BLOCK:
        return False
    blocked = torch.ops.mkldnn._reorder_convolution_weight(
        weight, layer.padding, layer.stride, layer.dilation, layer.groups
    )
    _replace(layer, blocked)
    layer.forward = MethodType(_convolution_forward, layer)  # type: ignore[method-assign]
    return True


def relay(layer: nn.Conv2d) -> None:
    """A convolution's weight, o i k l, channels-last, as its input is."""
    layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
    layer.forward = MethodType(_relaid_forward, layer)  # type: ignore[method-assign]


def relay_back(layer: nn.Conv2d) -> None:
    """Laid out plainly again."""
    layer.weight.data = layer.weight.data.contiguous()
    layer.__dict__.pop("forward", None)


def is_packed(layer: nn.Module) -> bool:
    """Whether the layer's weight is blocked at the moment."""
    weight = layer._parameters.get("weight")
    return weight is not None and bool(weight.is_mkldnn)


def unpack(layer: nn.Module) -> None:
    """Plain weight and plain forward again, bit for bit."""
    layer.weight = nn.Parameter(plain_weight(layer), requires_grad=False)
    layer.__dict__.pop("forward")
    layer.__dict__.pop("plain_shape")
    layer._buffers.pop("gates", None)
    for handle in layer.__dict__.pop("packing_handles"):
        handle.remove()


def plain_weight(layer: nn.Module) -> Tensor:
    """The weight as it was before packing, a copy."""
    weight: Any = layer.weight
    if not weight.is_mkldnn:
        return weight  # type: ignore[no-any-return]
    if weight.requires_grad:
        raise AnimateDiffError(
            "the weights of an optimised model cannot be trained; call deflate() and train the "
            "plain model"
        )
    whole: Tensor = weight.to_dense()
    gates = layer._buffers.get("gates")
    if gates is not None:
        whole = torch.cat([whole, gates.to_dense()])
    shape: torch.Size = layer.plain_shape  # type: ignore[assignment]
    return whole.view(shape).contiguous()


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """What a linear layer or a 1 x 1 convolution makes of rows: … i -> … o."""
    if isinstance(layer, nn.Conv2d):
        weight: Tensor = layer.weight
        if not weight.is_mkldnn:
            return F.linear(x, weight.flatten(1), layer.bias)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, layer.bias, "none", [], "")
        return y
    rows: Tensor = layer(x)
    return rows


def linear_add(layer: nn.Module, x: Tensor, other: Tensor) -> Tensor:
    """`linear(layer, x) + other`, in one pass where the weight is packed."""
    if not is_packed(layer) or _has_hooks(layer):
        return linear(layer, x) + other
    y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, layer.weight, layer.bias, "add")
    return y


def gated(layer: nn.Linear, x: Tensor) -> Tensor:
    """GEGLU: values * gelu(gates), … i -> … o/2."""
    if "gates" not in layer._buffers or _has_hooks(layer):
        values, gates = layer(x).chunk(2, dim=-1)
        return values * F.gelu(gates)  # type: ignore[no-any-return]
    ops = torch.ops.mkldnn
    first, second = (None, None) if layer.bias is None else layer.bias.chunk(2)
    gates = ops._linear_pointwise(x, layer.gates, second, "gelu", [], "none")
    y: Tensor = ops._linear_pointwise.binary(x, gates, layer.weight, first, "mul")
    return y


def convolve_add(layer: nn.Conv2d, x: Tensor, other: Tensor) -> Tensor:
    """`layer(x) + other`, in one pass where the weight is packed."""
    if not is_packed(layer) or _has_hooks(layer) or layer.kernel_size == (1, 1):
        return layer(x).add_(other)  # type: ignore[no-any-return]
    y: Tensor = torch.ops.mkldnn._convolution_pointwise.binary(
        x, other, layer.weight, layer.bias, layer.padding, layer.stride, layer.dilation,
        layer.groups, "add", 1.0, None, [], None,
    )  # fmt: skip
    return y


def packed_layers(module: nn.Module) -> Iterator[nn.Module]:
    """Every layer under a module whose weight is packed."""
    return (layer for layer in module.modules() if is_packed(layer))


def _has_hooks(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


def _replace(layer: nn.Module, blocked: Tensor, shape: torch.Size | None = None) -> None:
    layer.__dict__["plain_shape"] = shape or blocked.shape
    layer.weight = nn.Parameter(blocked, requires_grad=False)
    layer.__dict__["packing_handles"] = (
        layer.register_state_dict_post_hook(_plain_state),
        layer.register_load_state_dict_pre_hook(_refuse_loading),
    )


def _plain_state(layer: nn.Module, state: Any, prefix: str, metadata: object) -> None:
    """What is saved of a packed layer is its plain weight."""
    if state.get(f"{prefix}weight") is not None:
        state[f"{prefix}weight"] = plain_weight(layer)


def _refuse_loading(*arguments: object) -> None:
    raise AnimateDiffError(
        "the weights of an optimised model cannot be loaded into; call deflate() first"
    )


def _exact(layer: nn.Module, x: Tensor) -> bool:
    """Whether the packed kernel may run: it knows no gradients and no mixed types."""
    weight: Any = layer.weight
    return bool(weight.is_mkldnn) and not torch.is_grad_enabled() and x.dtype == weight.dtype


def _linear_forward(self: nn.Linear, input: Tensor) -> Tensor:
    if "gates" in self._buffers or not _exact(self, input):
        return F.linear(input, plain_weight(self), self.bias)
    y: Tensor = torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")
    return y


def _pixel_forward(self: nn.Conv2d, input: Tensor) -> Tensor:
    if not _exact(self, input):
        return F.conv2d(input, plain_weight(self), self.bias)
    rows = linear(self, input.permute(0, 2, 3, 1))
    return rows.permute(0, 3, 1, 2)


def _convolution_forward(self: nn.Conv2d, input: Tensor) -> Tensor:
    if not _exact(self, input):
        weight = plain_weight(self)
        return F.conv2d(
            input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )
    y: Tensor = torch.ops.mkldnn._convolution_pointwise(
        input, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups,
        "none", [], "",
    )  # fmt: skip
    return y


def _relaid_forward(self: nn.Conv2d, input: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return nn.Conv2d.forward(self, input)
    # plain features, for torch 2.13 crashes in a frozen GroupNorm's channels-last backward
    y: Tensor = self._conv_forward(input.contiguous(), self.weight.contiguous(), self.bias)
    return y
