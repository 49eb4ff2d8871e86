"""Layers over rows of pixels, which the forwards of blocks.py are made of.

Legend: b batch, f frames, c channels, n images, h w size, r rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..motion.hooks import CallState, frames_pooled

_ROWS, _NARROW = 1024, 160


@dataclass
class Setting:
    """The settings that the forwards of one model share."""

    ops: Any
    """The module kernels or plain_ops."""
    chunked: bool
    """Whether chains of layers run for some rows at a time."""
    call: CallState | None = None
    """The animated model's call in progress, whose text all frames of a clip may share."""

    def rows(self, channels: int, dtype: torch.dtype) -> int:
        """Rows that go through a chain of layers together: with them, what lies between two layers
        is a few megabytes. Where layers are narrow, calls cost more than the cache saves."""
        if not self.chunked:
            return 1 << 40
        return 2 * _ROWS if channels <= _NARROW or dtype.itemsize < 4 else _ROWS


def stack_projections(attention: Any) -> bool:
    """Lay query, key and value weights behind one another, so that one product reads them all."""
    layers = (attention.to_q, attention.to_k, attention.to_v)
    if any(one.weight.shape != layers[0].weight.shape or one.bias is not None for one in layers):
        return False
    whole = torch.cat([layer.weight.detach() for layer in layers])
    for layer, part in zip(layers, whole.chunk(3), strict=True):
        layer.weight.data = part
    return True


def unstack_projections(attention: Any) -> None:
    """Copy query, key and value weights into memory of their own again."""
    for layer in (attention.to_q, attention.to_k, attention.to_v):
        layer.weight.data = layer.weight.data.clone()


def query_key_value(attention: Any, x: Tensor) -> Tensor:
    """r c -> r 3c, by one product where the weights lie behind one another."""
    layers = (attention.to_q, attention.to_k, attention.to_v)
    first = layers[0].weight
    # after a cast or a move each weight has memory of its own, which may lie behind the other's too
    memory = {layer.weight.untyped_storage().data_ptr() for layer in layers}
    places = [layer.weight.data_ptr() - first.data_ptr() for layer in layers]
    if len(memory) > 1 or places != [0, first.nbytes, 2 * first.nbytes]:
        return torch.cat([layer(x) for layer in layers], dim=-1)
    return F.linear(x, first.as_strided((3 * first.shape[0], first.shape[1]), first.stride()))


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """b q c, b k c, b k c -> (b q) c."""
    parts = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (query, key, value))
    return F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2).flatten(0, 1)


def feed_forward(setting: Setting, net: Any, normed: Tensor, x: Tensor) -> Tensor:
    """x and what a GEGLU feed forward adds to it, r c."""
    ops, project, most = setting.ops, net[0].proj, setting.rows(x.shape[1], x.dtype)
    parts = [
        ops.linear_add(net[2], ops.gate(linear(project, some)), other)
        for some, other in zip(normed.split(most), x.split(most), strict=True)
    ]
    whole: Tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
    return whole


def linear(layer: Any, x: Tensor) -> Tensor:
    """A linear layer, or a 1 x 1 convolution, over rows."""
    return F.linear(x, layer.weight.flatten(1), layer.bias)


def pooled_norm(
    setting: Setting,
    norm: nn.GroupNorm,
    x: Tensor,
    frames: int,
    *,
    silu: bool = False,
    bias: Tensor | None = None,
) -> Tensor:
    """A GroupNorm over so many frames together: as one image, of more rows of pixels."""
    if frames == 1:
        normed: Tensor = setting.ops.group_norm(x, norm, silu=silu, bias=bias)
        return normed
    if bias is not None:
        x = x + bias[:, :, None, None]
    tall = x.permute(0, 2, 3, 1).unflatten(0, (-1, frames)).flatten(1, 2).permute(0, 3, 1, 2)
    return images(rows(setting.ops.group_norm(tall, norm, silu=silu)), x)


def rows(x: Tensor) -> Tensor:
    """n c h w, channels last -> (n h w) c, a view."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def images(rows: Tensor, like: Tensor) -> Tensor:
    """(n h w) c -> n c h w, channels last, a view."""
    apart: Tensor = rows.unflatten(0, (like.shape[0], *like.shape[2:]))
    return apart.permute(0, 3, 1, 2)


def runs(module: nn.Module, x: Tensor) -> bool:
    """Whether a call fits: no gradients, one dtype, and no hooks on inner layers."""
    weight = next(module.parameters())
    if torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type):
        return False
    return x.dtype == weight.dtype and not any(map(_is_hooked, _inner(module)))


def _inner(module: nn.Module) -> Iterator[nn.Module]:
    """Layers whose weights are read in the place of their forwards."""
    for name, child in module.named_children():
        if name != "processor":  # an IP-Adapter's runs as it is
            yield child
            yield from _inner(child)


def _is_hooked(layer: nn.Module) -> bool:
    if not (layer._forward_hooks or layer._forward_pre_hooks):
        return False
    return not (isinstance(layer, nn.GroupNorm) and frames_pooled(layer) is not None)
