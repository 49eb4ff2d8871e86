"""The operations of kernels.py in plain torch, for the CPU.

Features are images, n c h w and channels-last, or their pixels as rows, r c.

Legend: n frames, b clips, r rows, c channels, f frames of a clip, h w size, p attention heads.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_FEW_PIXELS = 1024
"""From as many on torch 2.13 has a fast kernel for GroupNorms of channels-last features."""
_WIDE_HEAD = 32


def group_norm(
    x: Tensor, norm: nn.GroupNorm, *, silu: bool = False, bias: Tensor | None = None
) -> Tensor:
    """A GroupNorm of each image, channels-last; bias: n c or 1 c, added to x before, in place.

    Over few pixels and few channels a group, torch's channels-last kernel is several times as slow
    as its plain one and a copy: 5 times in bf16, 1.5 in fp32.
    """
    if bias is not None:
        x = x.add_(bias[:, :, None, None])
    most = 16 if x.dtype == torch.bfloat16 else 4
    narrow = x.shape[1] // norm.num_groups <= most
    given = x.contiguous() if x.shape[2] * x.shape[3] < _FEW_PIXELS and narrow else x
    normed = F.group_norm(given, norm.num_groups, norm.weight, norm.bias, norm.eps)
    active = F.silu(normed, inplace=True) if silu else normed
    return active.contiguous(memory_format=torch.channels_last)


def layer_norm(
    x: Tensor, norm: nn.LayerNorm, positions: Tensor | None = None, pixels: int = 1
) -> Tensor:
    """A LayerNorm, plus positions f c by frame where each frame has so many pixels: r c -> r c."""
    normed = F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    if positions is not None:
        frames, channels = positions.shape
        normed.view(-1, frames, pixels, channels).add_(positions.unsqueeze(1))
    return normed


def gate(both: Tensor) -> Tensor:
    """values * gelu(gates), the halves of the last axis: r 2c -> r c."""
    values, gates = both.chunk(2, dim=-1)
    return F.gelu(gates).mul_(values)


def linear_add(
    layer: nn.Linear | nn.Conv2d, x: Tensor, other: Tensor, strength: float = 1.0
) -> Tensor:
    """other + strength * layer(x), of rows; a convolution's kernel is 1 x 1."""
    return F.linear(x, layer.weight.flatten(1), layer.bias).mul_(strength).add_(other)


def convolve(layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """A convolution, and the part of its bias that is still to be added: none."""
    y = F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding)
    return y.contiguous(memory_format=torch.channels_last), None


def add(x: Tensor, bias: Tensor | None, other: Tensor) -> Tensor:
    """other + x + bias, r c."""
    return (x if bias is None else x + bias).add_(other)


def attend_frames(qkv: Tensor, frames: int, pixels: int, heads: int) -> Tensor:
    """Self-attention of each pixel over the frames of its clip: (b f hw) 3c -> (b f hw) c."""
    parts = qkv.view(-1, frames, pixels, 3, heads, qkv.shape[1] // (3 * heads))
    given = parts if qkv.dtype != torch.bfloat16 or _suits_bf16(parts.shape[-1]) else parts.float()
    query, key, value = given.permute(3, 0, 2, 4, 1, 5).flatten(1, 2)  # 3 s p f d
    mixed = F.scaled_dot_product_attention(query, key, value)
    apart: Tensor = mixed.unflatten(0, (-1, pixels)).permute(0, 3, 1, 2, 4)  # b f hw p d
    return apart.flatten(3).flatten(0, 2).to(qkv.dtype)


def _suits_bf16(width: int) -> bool:
    """Whether attention over a few frames is quicker in bf16 than in fp32, which is nearer: where
    the CPU multiplies tiles of bf16, and its heads are not narrow."""
    return width >= _WIDE_HEAD and torch.cpu._is_amx_tile_supported()
