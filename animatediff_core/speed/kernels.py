"""What plain_ops.py does, by Triton: norms, gates, residuals and attention over frames, for CUDA.

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

_STAT_ROWS, _COLUMNS = 128, 64
MAX_FRAMES = 64
"""More frames are one block of the attention kernel too large."""


@triton.jit
def _moments_kernel(
    x, bias, moments, rows, channels, bias_step,
    HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared distances of ROWS rows, by channel."""
    across, clip = tl.cdiv(channels, COLUMNS), tl.program_id(1).to(tl.int64)
    block = tl.program_id(0) // across
    column = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    row = block * ROWS + tl.arange(0, ROWS)
    inside = (row < rows)[:, None] & (column < channels)[None, :]
    place = (clip * rows + row)[:, None]
    values = tl.load(x + place * channels + column[None, :], inside, 0.0).to(tl.float32)
    if HAS_BIAS:
        more = tl.load(bias + clip * bias_step + column, column < channels, 0.0).to(tl.float32)
        values = tl.where(inside, values + more, 0.0)
    count = tl.minimum(rows - block * ROWS, ROWS)
    mean = tl.sum(values, 0) / count
    apart = tl.where(inside, values - mean[None, :], 0.0)
    out = moments + ((clip * tl.cdiv(rows, ROWS) + block) * channels + column) * 2
    tl.store(out, mean, column < channels)
    tl.store(out + 1, tl.sum(apart * apart, 0), column < channels)


@triton.jit
def _affine_kernel(
    moments, weight, bias, affine, rows, channels, blocks, eps,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Scale and shift of each channel, from the moments of its group."""
    group, clip = tl.program_id(0), tl.program_id(1).to(tl.int64)
    member = tl.arange(0, WIDTH)
    channel = group * GROUP + member
    total = tl.zeros((WIDTH,), tl.float32)
    for first in range(0, blocks, BLOCKS):
        block = first + tl.arange(0, BLOCKS)
        inside = (block < blocks)[:, None] & (member < GROUP)[None, :]
        at = moments + ((clip * blocks + block)[:, None] * channels + channel[None, :]) * 2
        count = tl.minimum(rows - block * ROWS, ROWS)[:, None]
        total += tl.sum(tl.load(at, inside, 0.0) * count, 0)
    mean = tl.sum(total, 0) / (rows * GROUP)
    spread = tl.zeros((WIDTH,), tl.float32)
    for first in range(0, blocks, BLOCKS):
        block = first + tl.arange(0, BLOCKS)
        inside = (block < blocks)[:, None] & (member < GROUP)[None, :]
        at = moments + ((clip * blocks + block)[:, None] * channels + channel[None, :]) * 2
        count = tl.minimum(rows - block * ROWS, ROWS)[:, None]
        apart = tl.where(inside, tl.load(at, inside, 0.0) - mean, 0.0)
        spread += tl.sum(tl.load(at + 1, inside, 0.0) + apart * apart * count, 0)
    inverse = 1 / tl.sqrt(tl.sum(spread, 0) / (rows * GROUP) + eps)
    mine = member < GROUP
    scale = tl.load(weight + channel, mine, 0.0).to(tl.float32) * inverse
    shift = tl.load(bias + channel, mine, 0.0).to(tl.float32) - mean * scale
    tl.store(affine + (clip * channels + channel) * 2, scale, mine)
    tl.store(affine + (clip * channels + channel) * 2 + 1, shift, mine)


@triton.jit
def _normalize_kernel(
    x, bias, affine, out, rows, channels, bias_step,
    HAS_BIAS: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    across, clip = tl.cdiv(channels, COLUMNS), tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.program_id(0) // across * ROWS + tl.arange(0, ROWS)
    inside = (row < rows)[:, None] & (column < channels)[None, :]
    place = (clip * rows + row)[:, None]
    at = place * channels + column[None, :]
    values = tl.load(x + at, inside, 0.0).to(tl.float32)
    if HAS_BIAS:
        values += tl.load(bias + clip * bias_step + column, column < channels, 0.0).to(tl.float32)
    pair = affine + (clip * channels + column) * 2
    scale = tl.load(pair, column < channels, 0.0)
    shift = tl.load(pair + 1, column < channels, 0.0)
    values = values * scale[None, :] + shift[None, :]
    if SILU:
        values = values / (1 + tl.exp(-values))
    tl.store(out + at, values.to(out.dtype.element_ty), inside)


def group_norm(
    x: Tensor, norm: nn.GroupNorm, *, silu: bool = False, bias: Tensor | None = None
) -> Tensor:
    """A GroupNorm of each image, channels-last; bias: n c or 1 c, added to x before."""
    clips, channels = x.shape[:2]
    rows = x.shape[2] * x.shape[3]
    blocks, columns = triton.cdiv(rows, _STAT_ROWS), triton.cdiv(channels, _COLUMNS)
    moments = x.new_empty((clips, blocks, channels, 2), dtype=torch.float32)
    affine = x.new_empty((clips, channels, 2), dtype=torch.float32)
    out = torch.empty_like(x)
    step = channels if bias is not None and len(bias) > 1 else 0
    _moments_kernel[(columns * blocks, clips)](
        x, bias, moments, rows, channels, step,
        HAS_BIAS=bias is not None, ROWS=_STAT_ROWS, COLUMNS=_COLUMNS,
    )  # fmt: skip
    group = channels // norm.num_groups
    _affine_kernel[(norm.num_groups, clips)](
        moments, norm.weight, norm.bias, affine, rows, channels, blocks, norm.eps,
        GROUP=group, WIDTH=triton.next_power_of_2(group), ROWS=_STAT_ROWS, BLOCKS=32, num_warps=1,
    )  # fmt: skip
    _normalize_kernel[(columns * triton.cdiv(rows, 64), clips)](
        x, bias, affine, out, rows, channels, step,
        HAS_BIAS=bias is not None, SILU=silu, ROWS=64, COLUMNS=_COLUMNS,
    )  # fmt: skip
    return out


@triton.jit
def _layer_norm_kernel(
    x, weight, bias, positions, out, rows, channels, eps, pixels, frames,
    PLACED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    wide = column < channels
    inside = (row < rows)[:, None] & wide[None, :]
    at = row[:, None] * channels + column[None, :]
    values = tl.load(x + at, inside, 0.0).to(tl.float32)
    mean = tl.sum(values, 1) / channels
    apart = tl.where(inside, values - mean[:, None], 0.0)
    inverse = 1 / tl.sqrt(tl.sum(apart * apart, 1) / channels + eps)
    scale = tl.load(weight + column, wide, 0.0).to(tl.float32)
    shift = tl.load(bias + column, wide, 0.0).to(tl.float32)
    values = apart * inverse[:, None] * scale[None, :] + shift[None, :]
    if PLACED:
        frame = (row // pixels) % frames
        places = frame[:, None] * channels + column[None, :]
        values += tl.load(positions + places, inside, 0.0).to(tl.float32)
    tl.store(out + at, values.to(out.dtype.element_ty), inside)


def layer_norm(
    x: Tensor, norm: nn.LayerNorm, positions: Tensor | None = None, pixels: int = 1
) -> Tensor:
    """A LayerNorm, plus positions f c by frame where each frame has so many pixels: r c -> r c."""
    rows, channels = x.shape
    out = torch.empty_like(x)
    columns = triton.next_power_of_2(channels)
    together = max(1, min(32, 4096 // columns))
    _layer_norm_kernel[(triton.cdiv(rows, together),)](
        x, norm.weight, norm.bias, positions, out, rows, channels, norm.eps, pixels,
        1 if positions is None else positions.shape[0],
        PLACED=positions is not None, ROWS=together, COLUMNS=columns,
    )  # fmt: skip
    return out


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
    x, bias, other, out, rows, channels, strength,
    HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
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
        x, bias, other, out, rows, channels, float(strength),
        HAS_BIAS=bias is not None, ROWS=32, COLUMNS=64,
    )  # fmt: skip
    return out


def linear_add(
    layer: nn.Linear | nn.Conv2d, x: Tensor, other: Tensor, strength: float = 1.0
) -> Tensor:
    """other + strength * layer(x), of rows; a convolution's kernel is 1 x 1."""
    return add(F.linear(x, layer.weight.flatten(1)), layer.bias, other, strength)


def convolve(layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """What a convolution makes, and its bias, which torch would add in a pass of its own."""
    y = F.conv2d(x, layer.weight, None, layer.stride, layer.padding)
    return y.contiguous(memory_format=torch.channels_last), layer.bias


@triton.jit
def _frames_kernel(
    qkv, out, frames, pixels, channels, scale,
    WIDTH: tl.constexpr, DIM: tl.constexpr, FRAMES: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
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
        qkv, out, frames, pixels, channels, width**-0.5,
        WIDTH=width, DIM=dim, FRAMES=most, PIXELS=together,
    )  # fmt: skip
    return out
