"""The plain image model over clips: every frame for itself, no motion.

Legend: b batch, f frames, c channels, h w latent size, n tokens, d features.
"""

from diffusers.models import UNet2DConditionModel
from torch import Tensor, nn

from ..motion import Conditions, added_conditions
from ..motion.conditions import fold_frames, text_by_frame, unfold_frames


class ImageUNet(nn.Module):
    """An image UNet with the call of an AnimatedUNet; its frames do not see each other."""

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
        frames = sample.shape[2]
        states = text_by_frame(text, frames)
        added = added_conditions(conditions or Conditions(), frames)
        out = self.unet(
            fold_frames(sample), timestep, states, added_cond_kwargs=added, return_dict=False
        )[0]
        return unfold_frames(out, frames)
