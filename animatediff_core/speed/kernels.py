"""The operations of plain_ops.py as Triton kernels, for CUDA.

A tensor is read once and written once, computed in fp32 and stored in its dtype. In the tests the
kernels run on the CPU, by Triton's interpreter. Block sizes depend on shapes alone.

Legend: n clips or frames, r rows (pixels), c channels, g groups, f frames, p attention heads.
"""

# ruff: noqa: N803 (constants of kernels)

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.nn import functional as F

from .norm_kernels import group_norm, layer_norm

__all__ = [
    "MAX_FRAMES",
    "add",
    "attend_frames",
    "convolve",
    "gate",
    "group_norm",
    "layer_norm",
    "linear_add",
]

MAX_FRAMES = 64
"""More frames are one block of the attention kernel too large."""


@triton.jit
def _gelu(x):
    return 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _gate_kernel(both, out, rows, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    across = tl.cdiv(channels, COLUMNS)
    row = (tl.program_id(0) // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < channels)[None, :]
    at = both + row[:, None] * 2 * channels + column[None, :]
    value = tl.load(at, inside, 0.0).to(tl.float32)
    gate = tl.load(at + channels, inside, 0.0).to(tl.float32)
    place = out + row[:, None] * channels + column[None, :]
    tl.store(place, (value * _gelu(gate)).to(out.dtype.element_ty), inside)


def gate(both: Tensor) -> Tensor:
    """values * gelu(gates), the halves of the last axis: r 2c -> r c."""
    rows, channels = both.shape[0], both.shape[1] // 2
    out = both.new_empty(rows, channels)
    grid = (triton.cdiv(channels, 128) * triton.cdiv(rows, 16),)
    _gate_kernel[grid](both, out, rows, channels, ROWS=16, COLUMNS=128)
    return out


@triton.jit
def _add_kernel(
    x,
    bias,
    other,
    out,
    rows,
    channels,
    strength,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    across = tl.cdiv(channels, COLUMNS)
    row = (tl.program_id(0) // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < channels)[None, :]
    at = row[:, None] * channels + column[None, :]
    values = tl.load(x + at, inside, 0.0).to(tl.float32)
    if HAS_BIAS:
        values += tl.load(bias + column, column < channels, 0.0).to(tl.float32)[None, :]
    values = tl.load(other + at, inside, 0.0).to(tl.float32) + strength * values
    tl.store(out + at, values.to(out.dtype.element_ty), inside)


def add(x: Tensor, bias: Tensor | None, other: Tensor, strength: float = 1.0) -> Tensor:
    """other + strength * (x + bias): r c, c, r c -> r c."""
    rows, channels = x.shape
    out = torch.empty_like(x)
    grid = (triton.cdiv(channels, 64) * triton.cdiv(rows, 32),)
    _add_kernel[grid](
        x,
        bias,
        other,
        out,
        rows,
        channels,
        float(strength),
        HAS_BIAS=bias is not None,
        ROWS=32,
        COLUMNS=64,
    )
    return out


def linear_add(
    layer: nn.Linear | nn.Conv2d, x: Tensor, other: Tensor, strength: float = 1.0
) -> Tensor:
    """other + strength * layer(x), of rows; a convolution's kernel is 1 x 1."""
    return add(F.linear(x, layer.weight.flatten(1)), layer.bias, other, strength)


def convolve(layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """A convolution without its bias, and the bias, which torch would add in a pass of its own."""
    y = F.conv2d(x, layer.weight, None, layer.stride, layer.padding)
    return y.contiguous(memory_format=torch.channels_last), layer.bias


@triton.jit
def _frames_kernel(
    qkv,
    out,
    frames,
    pixels,
    channels,
    scale,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
    FRAMES: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """Some pixels of one head and clip as one product, in which pixels do not see each other."""
    head, clip = tl.program_id(0), tl.program_id(2).to(tl.int64)
    place = tl.arange(0, FRAMES * PIXELS)
    frame, member = place // PIXELS, place % PIXELS
    pixel = tl.program_id(1) * PIXELS + member
    row = (clip * frames + frame) * pixels + pixel
    number = tl.arange(0, DIM)
    inside = ((frame < frames) & (pixel < pixels))[:, None] & (number < WIDTH)[None, :]
    at = qkv + row[:, None] * 3 * channels + head * WIDTH + number[None, :]
    query = tl.load(at, inside, 0.0)
    key = tl.load(at + channels, inside, 0.0)
    value = tl.load(at + 2 * channels, inside, 0.0)
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
    seen = (member[:, None] == member[None, :]) & (frame < frames)[None, :]
    scores = tl.where(seen, scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    total = tl.sum(weights, 1)
    mixed = tl.dot(weights.to(value.dtype), value, input_precision="ieee") / total[:, None]
    to = out + row[:, None] * channels + head * WIDTH + number[None, :]
    tl.store(to, mixed.to(out.dtype.element_ty), inside)


def attend_frames(qkv: Tensor, frames: int, pixels: int, heads: int) -> Tensor:
    """Self-attention of each pixel over the frames of its clip: (b f hw) 3c -> (b f hw) c.

    Frames are read where they lie, hw rows apart; at most MAX_FRAMES of them.
    """
    rows, channels = qkv.shape[0], qkv.shape[1] // 3
    width = channels // heads
    out = qkv.new_empty(rows, channels)
    most = triton.next_power_of_2(frames)
    dim = max(16, triton.next_power_of_2(width))
    room = 64 if dim * qkv.element_size() <= 256 else 32
    together = max(1, room // most, 16 // most)
    grid = (heads, triton.cdiv(pixels, together), rows // (frames * pixels))
    _frames_kernel[grid](
        qkv,
        out,
        frames,
        pixels,
        channels,
        width**-0.5,
        WIDTH=width,
        DIM=dim,
        FRAMES=most,
        PIXELS=together,
    )
    return out
