"""The arguments of one call of an animated UNet besides sample, timestep and text.

Legend: b batch, f frames, k frames of a window, c channels, h w latent size, n tokens, d features.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from .module import AS_TRAINED, Positions

_FOLDED = {"frames": "folded"}
"""Metadata of a field whose tensors fold the frames into the batch, (b f) ..."""
_AXIS_0, _AXIS_1, _AXIS_2 = ({"frames": axis} for axis in range(3))
"""Metadata of a field whose tensors have the frames along this axis."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Conditioning inputs of one UNet call besides sample, timestep and text."""

    pooled_text: Tensor | None = field(default=None, metadata=_AXIS_1)
    """SDXL's pooled text, b d, or b f d for text per frame."""
    size_ids: Tensor | None = None
    """SDXL's original size, crop corner and target size in pixels, b 6."""
    down_residuals: tuple[Tensor, ...] = field(default=(), metadata=_FOLDED)
    """ControlNet's additions to the skip connections, each (b f) c h w."""
    mid_residual: Tensor | None = field(default=None, metadata=_FOLDED)
    """ControlNet's addition to the mid block, (b f) c h w."""
    adapter_residuals: tuple[Tensor, ...] = field(default=(), metadata=_FOLDED)
    """T2I-Adapter's additions within the down blocks (and SDXL's mid block), each (b f) c h w."""
    image_embeddings: tuple[Tensor, ...] = field(default=(), metadata=_FOLDED)
    """IP-Adapters' image embeddings, each (b f) images n d."""
    image_masks: tuple[Tensor, ...] = field(default=(), metadata=_AXIS_0)
    """How strongly each of these adapters acts at each pixel of each frame, f h w, 0 or more; empty
    is 1 everywhere. A frame's mask is resized for each attention layer."""
    image_latents: Tensor | None = field(default=None, metadata=_AXIS_2)
    """PIA's additional input, b 5 f h w: the PIA mask, then the image's latents in every frame. PIA
    modules require it, other modules reject it."""
    lora_weights: tuple[Tensor, ...] = field(default=(), metadata=_AXIS_0)
    """The scale of each attached LoRA by frame, f, in the order in which they were attached."""
    guidance_scale: float | None = None
    """The scale that a UNet with an embedding of it (LCM's) reads; other UNets ignore it."""
    motion_strength: float = 1.0
    """Scale of the motion module's residual; 0 gives the plain image model, 1 the trained one."""
    motion_blocks: Mapping[str, float] = field(default_factory=dict)
    """A further scale by block of the UNet: down_blocks.0, mid_block, up_blocks.2, ..."""
    motion_frames: Tensor | None = field(default=None, metadata=_AXIS_0)
    """A further scale by frame, f."""
    motion_positions: Positions = AS_TRAINED
    """Where the frames of the call read the module's positions."""

    def at(self, frames: Tensor, total: int) -> "Conditions":
        """Conditions of some frames, by number, k, of a clip of `total`: every field with a frame
        axis is cut to them, in their order."""
        cut = {
            one.name: _cut(getattr(self, one.name), one.metadata["frames"], frames, total)
            for one in fields(self)
            if "frames" in one.metadata
        }
        return replace(self, **cut)


NO_CONDITIONS = Conditions()


def _cut(value: Any, axis: int | str, frames: Tensor, total: int) -> Any:
    """One field's tensor, tensors or None for some frames."""
    if isinstance(value, tuple):
        return tuple(_cut(one, axis, frames, total) for one in value)
    if value is None or (axis == 1 and value.ndim == 2):  # one text for all frames
        return value
    if axis == "folded":
        return value.unflatten(0, (-1, total)).index_select(1, frames).flatten(0, 1)
    return value.index_select(axis, frames)


def added_conditions(conditions: Conditions, frames: int) -> dict[str, Tensor | list[Tensor]]:
    """The UNet's added_cond_kwargs for clips of `frames` frames."""
    added: dict[str, Tensor | list[Tensor]] = {}
    if (pooled := conditions.pooled_text) is not None:
        by_frame = pooled.ndim == 3
        added["text_embeds"] = (
            pooled.flatten(0, 1) if by_frame else pooled.repeat_interleave(frames, 0)
        )  # (b f) d
    if conditions.size_ids is not None:
        added["time_ids"] = conditions.size_ids.repeat_interleave(frames, 0)
    if conditions.image_embeddings:
        added["image_embeds"] = list(conditions.image_embeddings)
    return added


def guidance_embedding(width: int, conditions: Conditions, images: int) -> Tensor | None:
    """The embedding of the guidance scale minus 1, images x width, as LCM's UNets read it; None
    without a scale."""
    if conditions.guidance_scale is None:
        return None
    waves = torch.exp(torch.arange(width // 2) * -(math.log(10000) / (width // 2 - 1)))
    waves = 1000 * (conditions.guidance_scale - 1) * waves
    return torch.cat([waves.sin(), waves.cos()]).expand(images, -1)


def fold_frames(clips: Tensor) -> Tensor:
    """b c f h w -> (b f) c h w, as the 2D layers of an image UNet take it."""
    return clips.transpose(1, 2).flatten(0, 1)


def unfold_frames(images: Tensor, frames: int) -> Tensor:
    """(b f) c h w -> b c f h w."""
    clips: Tensor = images.unflatten(0, (-1, frames)).transpose(1, 2)
    return clips


def text_by_frame(text: Tensor, frames: int) -> Tensor:
    """b n d, or b f n d for text per frame -> (b f) n d."""
    return text.flatten(0, 1) if text.ndim == 4 else text.repeat_interleave(frames, 0)
