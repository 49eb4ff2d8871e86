"""The motion module's transformers on some pixels at a time, so that they stay in the cache.

After the norm every pixel's frames are a sequence of their own, so the whole chain of projections,
attention over frames and feed forward runs for a few pixels before the next ones are touched.

Legend: b batch, f frames, c channels, h w latent size, s sequences (pixels), p attention heads.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..motion.module import AS_TRAINED, Positions, TemporalTransformer, sinusoids
from .norms import group_norm
from .packing import linear_add
from .spatial import feed_forward, rows_for

_WIDE_HEAD = 32


@dataclass
class FastTemporal:
    """The forward of one TemporalTransformer."""

    transformer: TemporalTransformer

    def forward(
        self,
        features: Tensor,
        frames: int,
        strength: float = 1.0,
        positions: Positions = AS_TRAINED,
    ) -> Tensor:
        """features: (b f) c h w -> the same shape."""
        kept = self.transformer
        if torch.is_grad_enabled():
            plain: Tensor = type(kept).forward(kept, features, frames, strength, positions)
            return plain
        given = features.contiguous(memory_format=torch.channels_last)
        out = torch.empty_like(given)
        normed, old, new = (_by_pixel(t, frames) for t in (self._norm(given, frames), given, out))
        places = sinusoids(frames, given.shape[1], given, positions)
        step = max(1, rows_for(given.shape[1], given.dtype) // frames)
        for clip in range(normed.shape[0]):
            for first in range(0, normed.shape[1], step):
                some = clip, slice(first, first + step)
                moved = self._some(normed[some], places)
                torch.add(old[some], moved, alpha=strength, out=new[some])
        return out

    def _norm(self, features: Tensor, frames: int) -> Tensor:
        kept = self.transformer
        if kept.frame_norm == "frame":
            return group_norm(kept.norm, features)
        clips = features.unflatten(0, (-1, frames)).transpose(1, 2).flatten(2, 3)  # b c (f h) w
        apart = kept.norm(clips).unflatten(2, (frames, -1))  # b c f h w
        joined: Tensor = apart.transpose(1, 2).flatten(0, 1)
        return joined

    def _some(self, x: Tensor, positions: Tensor) -> Tensor:
        """Some pixels: s f c -> s f c."""
        kept = self.transformer
        x = kept.proj_in(x)
        for block in kept.transformer_blocks:
            for attention, norm in zip(block.attention_blocks, block.norms, strict=True):  # type: ignore[arg-type]
                x = _attend(attention, norm(x).add_(positions), x)
            x = feed_forward(block.ff.net, block.ff_norm(x), x)  # type: ignore[operator, union-attr]
        moved: Tensor = kept.proj_out(x)
        return moved


def _by_pixel(features: Tensor, frames: int) -> Tensor:
    """(b f) c h w -> b hw f c; a view where channels are last."""
    rows = features.permute(0, 2, 3, 1).flatten(1, 2)  # (b f) hw c
    pixels: Tensor = rows.unflatten(0, (-1, frames)).transpose(1, 2)
    return pixels


def _attend(attention: Any, normed: Tensor, x: Tensor) -> Tensor:
    """x and what attention over frames adds to it: s f c."""
    given = [project(normed) for project in (attention.to_q, attention.to_k, attention.to_v)]
    if x.dtype == torch.bfloat16 and not _suits_bf16(x.shape[-1] // attention.heads):
        given = [t.float() for t in given]
    query, key, value = (t.unflatten(2, (attention.heads, -1)).transpose(1, 2) for t in given)
    mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)  # s f c
    return linear_add(attention.to_out[0], mixed.to(x.dtype), x)


def _suits_bf16(width: int) -> bool:
    """Whether attention over a few frames is quicker in bf16 than in fp32, which is nearer: where
    the CPU multiplies tiles of bf16, and its heads are not narrow."""
    return width >= _WIDE_HEAD and torch.cpu._is_amx_tile_supported()
