"""Everything that guides a sampling run: prompts, control models, regions and known latents.

Legend: b batch, f frames, k frames of a window, c channels, h w latent size, n tokens, d features.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..motion import Conditions
from .guidance import Guidance
from .known_region import KnownRegion
from .residuals import Control

FrameText = Callable[[Tensor], Tensor]
"""From frame numbers, k, on the CPU, to their text, b k n d: so that a long clip need not hold the
text of all frames."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """A part of the frame with a prompt of its own."""

    text: Tensor | FrameText
    """b n d, b f n d, or a function of the frames."""
    mask: Tensor
    """1 1 f h w, 0 to 1: how far this prompt replaces the ones behind it."""
    conditions: Conditions


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """Conditioning of one sampling run; `text` and `conditions` belong to the positive prompt."""

    text: Tensor | FrameText
    """b n d, b f n d, or a function of the frames."""
    negative_text: Tensor | FrameText
    conditions: Conditions = field(default_factory=Conditions)
    negative_conditions: Conditions = field(default_factory=Conditions)
    guidance: Guidance = field(default_factory=Guidance)
    controls: tuple[Control, ...] = ()
    regions: tuple[Region, ...] = ()
    """Later ones lie in front."""
    known: KnownRegion | None = None
    """Latents that the clip keeps."""
    source: Tensor | None = None
    """Clean latents b c f h w that the run begins from; None is noise alone."""

    def in_both(self, change: Callable[[Conditions], Conditions]) -> "Conditioning":
        """Change the conditions of the positive and of the negative prompt alike."""
        return replace(
            self,
            conditions=change(self.conditions),
            negative_conditions=change(self.negative_conditions),
        )


def text_at(text: Tensor | FrameText, frames: Tensor | None, total: int) -> Tensor:
    """The text of some frames' numbers, k, or of all `total`: b n d if they share it, else
    b k n d."""
    if callable(text):
        return text(torch.arange(total) if frames is None else frames)
    if frames is None or text.ndim == 3:
        return text
    return text.index_select(1, frames.to(text.device, non_blocking=True))
