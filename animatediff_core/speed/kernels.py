"""Triton kernels for channels-last features: norms, gates, residuals, attention over frames.

Everything is read once and written once, computed in fp32, and stored in the features' dtype. They
run on CUDA, and in the tests on the CPU by Triton's interpreter. Block sizes depend on shapes alone.

Legend: n clips or frames, r rows (pixels), c channels, g groups, f frames, p attention heads.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_STAT_ROWS, _COLUMNS = 128, 64
MAX_FRAMES = 64
"""More frames are one block of the attention kernel too large."""


@triton.jit
def _moments_kernel(
    x, bias, moments, rows, channels, rows_per_bias,
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
        at = (place // rows_per_bias) * channels + column[None, :]
        values += tl.load(bias + at, inside, 0.0).to(tl.float32)
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
    x, bias, affine, out, rows, channels, rows_per_bias,
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
        other = (place // rows_per_bias) * channels + column[None, :]
        values += tl.load(bias + other, inside, 0.0).to(tl.float32)
    pair = affine + (clip * channels + column) * 2
    scale = tl.load(pair, column < channels, 0.0)
    shift = tl.load(pair + 1, column < channels, 0.0)
    values = values * scale[None, :] + shift[None, :]
    if SILU:
        values = values / (1 + tl.exp(-values))
    tl.store(out + at, values.to(out.dtype.element_ty), inside)


def group_norm(
    x: Tensor,
    norm: torch.nn.GroupNorm,
    clips: int,
    *,
    silu: bool = False,
    bias: Tensor | None = None,
) -> Tensor:
    """A GroupNorm over each of `clips` equal parts of rows: x r c -> r c.

    bias: k c, added to x before; each of its rows holds for r/k rows.
    """
    rows, channels = x.shape[0] // clips, x.shape[1]
    blocks = triton.cdiv(rows, _STAT_ROWS)
    moments = x.new_empty((clips, blocks, channels, 2), dtype=torch.float32)
    affine = x.new_empty((clips, channels, 2), dtype=torch.float32)
    out = torch.empty_like(x)
    has = bias is not None
    each = x.shape[0] // bias.shape[0] if bias is not None else 1
    columns = triton.cdiv(channels, _COLUMNS)
    _moments_kernel[(columns * blocks, clips)](
        x, bias, moments, rows, channels, each,
        HAS_BIAS=has, ROWS=_STAT_ROWS, COLUMNS=_COLUMNS, num_warps=4,
    )  # fmt: skip
    group = channels // norm.num_groups
    _affine_kernel[(norm.num_groups, clips)](
        moments, norm.weight, norm.bias, affine, rows, channels, blocks, norm.eps,
        GROUP=group, WIDTH=triton.next_power_of_2(group), ROWS=_STAT_ROWS, BLOCKS=32, num_warps=1,
    )  # fmt: skip
    _normalize_kernel[(columns * triton.cdiv(rows, 64), clips)](
        x, bias, affine, out, rows, channels, each,
        HAS_BIAS=has, SILU=silu, ROWS=64, COLUMNS=_COLUMNS, num_warps=4,
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
    x: Tensor, norm: torch.nn.LayerNorm, positions: Tensor | None = None, pixels: int = 1
) -> Tensor:
    """A LayerNorm, plus positions f c by frame where each frame has so many pixels: r c -> r c."""
    rows, channels = x.shape
    out = torch.empty_like(x)
    columns = triton.next_power_of_2(channels)
    together = max(1, min(32, 4096 // columns))
    _layer_norm_kernel[(triton.cdiv(rows, together),)](
        x, norm.weight, norm.bias, positions, out, rows, channels, norm.eps, pixels,
        1 if positions is None else positions.shape[0],
        PLACED=positions is not None, ROWS=together, COLUMNS=columns, num_warps=4,
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
    _gate_kernel[grid](both, out, rows, channels, ROWS=16, COLUMNS=128, num_warps=4)
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
        HAS_BIAS=bias is not None, ROWS=32, COLUMNS=64, num_warps=4,
    )  # fmt: skip
    return out


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
        WIDTH=width, DIM=dim, FRAMES=most, PIXELS=together, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def _product_kernel(
    x, weight, bias, other, out, rows, features, depth, strength,
    GATED: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_OTHER: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, BAND: tl.constexpr,
):  # fmt: skip
    across, down = tl.cdiv(features, COLUMNS), tl.cdiv(rows, ROWS)
    number = tl.program_id(0)  # bands of BAND blocks of rows, so that their weights stay in L2
    band = number // (BAND * across)
    height = tl.minimum(down - band * BAND, BAND)
    inner = number % (BAND * across)
    row = (band * BAND + inner % height) * ROWS + tl.arange(0, ROWS)
    column = (inner // height) * COLUMNS + tl.arange(0, COLUMNS)
    deep = tl.arange(0, DEPTH)
    rows_in, columns_in = row < rows, column < features
    left = x + row.to(tl.int64)[:, None] * depth + deep[None, :]
    right = weight + column[None, :] * depth + deep[:, None]
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    gates = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, depth, DEPTH):
        deep_in = deep < depth - first
        a = tl.load(left + first, rows_in[:, None] & deep_in[None, :], 0.0)
        b = tl.load(right + first, columns_in[None, :] & deep_in[:, None], 0.0)
        sums = tl.dot(a, b, sums, input_precision="ieee")
        if GATED:
            more = right + first + features * depth
            b = tl.load(more, columns_in[None, :] & deep_in[:, None], 0.0)
            gates = tl.dot(a, b, gates, input_precision="ieee")
    if HAS_BIAS:
        sums += tl.load(bias + column, columns_in, 0.0).to(tl.float32)[None, :]
        if GATED:
            gates += tl.load(bias + features + column, columns_in, 0.0).to(tl.float32)[None, :]
    if GATED:
        sums *= _gelu(gates)
    inside = rows_in[:, None] & columns_in[None, :]
    at = row.to(tl.int64)[:, None] * features + column[None, :]
    if HAS_OTHER:
        sums = tl.load(other + at, inside, 0.0).to(tl.float32) + strength * sums
    tl.store(out + at, sums.to(out.dtype.element_ty), inside)


def product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    other: Tensor | None = None,
    strength: float = 1.0,
    gated: bool = False,
) -> Tensor:
    """x @ weight.T + bias with what follows it: r i, o i -> r o, or r o/2 where gated.

    gated: the first half of the result times gelu of the second; other: other + strength * result.
    """
    rows, depth = x.shape
    features = weight.shape[0] // (2 if gated else 1)
    out = x.new_empty(rows, features)
    block = (128, 128, 64) if x.element_size() == 2 else (64, 32, 32)
    grid = (triton.cdiv(rows, block[0]) * triton.cdiv(features, block[1]),)
    _product_kernel[grid](
        x, weight, bias, other, out, rows, features, depth, float(strength),
        GATED=gated, HAS_BIAS=bias is not None, HAS_OTHER=other is not None,
        ROWS=block[0], COLUMNS=block[1], DEPTH=block[2], BAND=8,
        num_warps=8 if gated or block[0] > 64 else 4, num_stages=3,
    )  # fmt: skip
    return out
