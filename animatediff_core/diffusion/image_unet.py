"""The plain image model with a clip's shapes: every frame for itself, no motion.

Legend: b batch, f frames, c channels, h w latent size, n tokens, d features.
"""

from diffusers.models import UNet2DConditionModel
from torch import Tensor, nn

from ..motion import Conditions, added_conditions


class ImageUNet(nn.Module):
    """Called like an AnimatedUNet, but its frames do not know of each other."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        sample: Tensor,
        timestep: int | Tensor,
        text: Tensor,
        conditions: Conditions | None = None,
    ) -> Tensor:
        """sample: b c f h w; text: b n d or b f n d -> b c f h w."""
        batch, _, frames = sample.shape[:3]
        states = text.flatten(0, 1) if text.ndim == 4 else text.repeat_interleave(frames, 0)
        folded = sample.transpose(1, 2).flatten(0, 1)  # (b f) c h w
        added = added_conditions(conditions or Conditions(), frames)
        out = self.unet(folded, timestep, states, added_cond_kwargs=added, return_dict=False)[0]
        clips: Tensor = out.unflatten(0, (batch, frames)).transpose(1, 2)
        return clips
