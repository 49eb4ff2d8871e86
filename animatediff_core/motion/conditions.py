"""What one call of an animated UNet can take besides sample, timestep and text.

Legend: b batch, f frames, k frames of a window, c channels, h w latent size, n tokens, d features.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from .module import AS_TRAINED, Positions


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Everything besides sample, timestep and text that one UNet call can take."""

    pooled_text: Tensor | None = None
    """SDXL's pooled text, b d, or b f d for text per frame."""
    size_ids: Tensor | None = None
    """SDXL's original size, crop corner and target size in pixels, b 6."""
    down_residuals: tuple[Tensor, ...] = ()
    """ControlNet's additions to the skip connections, each (b f) c h w."""
    mid_residual: Tensor | None = None
    """ControlNet's addition to the mid block, (b f) c h w."""
    adapter_residuals: tuple[Tensor, ...] = ()
    """T2I-Adapter's additions within the down blocks (and SDXL's mid block), each (b f) c h w."""
    image_embeddings: tuple[Tensor, ...] = ()
    """IP-Adapter's image embeddings, each (b f) images n d."""
    image_weights: tuple[Tensor, ...] = ()
    """A scale by frame of what each of these adapters adds, f; none is 1 everywhere."""
    image_latents: Tensor | None = None
    """PIA's further input, b 5 f h w: a mask (how alike each frame is to the picture), then the
    picture's latents in every frame. PIA modules need it, others have no use for it."""
    motion_strength: float = 1.0
    """Scale of the motion module's residual; 0 gives the plain image model, 1 the trained one."""
    motion_blocks: Mapping[str, float] = field(default_factory=dict)
    """A further scale by block of the UNet: down_blocks.0, mid_block, up_blocks.2, ..."""
    motion_frames: Tensor | None = None
    """A further scale by frame, f."""
    motion_positions: Positions = AS_TRAINED
    """Where the frames of the call read the module's positions."""

    def at(self, frames: Tensor, total: int) -> "Conditions":
        """The same for some frames of a clip of `total`: their numbers, k, in a window's order."""

        def folded(clip: Tensor) -> Tensor:  # (b f) ... -> (b k) ...
            kept: Tensor = clip.unflatten(0, (-1, total)).index_select(1, frames)
            return kept.flatten(0, 1)

        image, middle, moved = self.image_latents, self.mid_residual, self.motion_frames
        pooled = self.pooled_text
        if pooled is not None and pooled.ndim == 3:
            pooled = pooled.index_select(1, frames)
        return replace(
            self,
            pooled_text=pooled,
            down_residuals=tuple(map(folded, self.down_residuals)),
            mid_residual=None if middle is None else folded(middle),
            adapter_residuals=tuple(map(folded, self.adapter_residuals)),
            image_embeddings=tuple(map(folded, self.image_embeddings)),
            image_weights=tuple(one.index_select(0, frames) for one in self.image_weights),
            image_latents=None if image is None else image.index_select(2, frames),
            motion_frames=None if moved is None else moved.index_select(0, frames),
        )


NO_CONDITIONS = Conditions()


def added_conditions(given: Conditions, frames: int) -> dict[str, Tensor | list[Tensor]]:
    """The UNet's added_cond_kwargs for `frames` pictures of each clip."""
    added: dict[str, Tensor | list[Tensor]] = {}
    if (pooled := given.pooled_text) is not None:
        by_frame = pooled.ndim == 3
        added["text_embeds"] = (
            pooled.flatten(0, 1) if by_frame else pooled.repeat_interleave(frames, 0)
        )  # (b f) d
    if given.size_ids is not None:
        added["time_ids"] = given.size_ids.repeat_interleave(frames, 0)
    if given.image_embeddings:
        added["image_embeds"] = list(given.image_embeddings)
    return added
