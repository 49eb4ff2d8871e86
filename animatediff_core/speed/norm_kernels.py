"""Triton kernels of norms, for CUDA: a tensor is read once or twice and written once.

Legend: n clips or frames, r rows (pixels), c channels, g groups, f frames.
"""

# ruff: noqa: N803 (constants of kernels)

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

_STAT_ROWS, _COLUMNS = 128, 64


@triton.jit
def _moments_kernel(
    x,
    bias,
    moments,
    rows,
    channels,
    bias_step,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
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
    moments,
    weight,
    bias,
    affine,
    rows,
    channels,
    blocks,
    eps,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
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
    x,
    bias,
    affine,
    out,
    rows,
    channels,
    bias_step,
    HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
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
    size = x.shape[2] * x.shape[3], channels  # rows and columns of one clip
    step = channels if bias is not None and len(bias) > 1 else 0
    across, biased = triton.cdiv(channels, _COLUMNS), bias is not None
    moments = x.new_empty(
        (clips, triton.cdiv(size[0], _STAT_ROWS), channels, 2), dtype=torch.float32
    )
    grid = (across * moments.shape[1], clips)
    _moments_kernel[grid](x, bias, moments, *size, step, biased, _STAT_ROWS, _COLUMNS)
    affine = moments.new_empty((clips, channels, 2))
    group = channels // norm.num_groups
    _affine_kernel[(norm.num_groups, clips)](
        moments,
        norm.weight,
        norm.bias,
        affine,
        *size,
        moments.shape[1],
        norm.eps,
        GROUP=group,
        WIDTH=triton.next_power_of_2(group),
        ROWS=_STAT_ROWS,
        BLOCKS=32,
        num_warps=1,
    )
    out = torch.empty_like(x)
    grid = (across * triton.cdiv(size[0], 64), clips)
    _normalize_kernel[grid](x, bias, affine, out, *size, step, biased, silu, 64, _COLUMNS)
    return out


@triton.jit
def _layer_norm_kernel(
    x,
    weight,
    bias,
    positions,
    out,
    rows,
    channels,
    eps,
    pixels,
    frames,
    PLACED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
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
        x,
        norm.weight,
        norm.bias,
        positions,
        out,
        rows,
        channels,
        norm.eps,
        pixels,
        1 if positions is None else positions.shape[0],
        PLACED=positions is not None,
        ROWS=together,
        COLUMNS=columns,
    )
    return out
