"""The second pass: a clip's latents are enlarged, then denoised for the last steps.

Legend: b batch, f frames, c channels, h w latent size.
"""

from torch import Tensor
from torch.nn import functional as F

from ..jobs import Upscale
from ..motion.conditions import fold_frames, unfold_frames


def enlarge(latents: Tensor, height: int, width: int, upscale: Upscale) -> Tensor:
    """b c f h w to b c f `height` `width`, frame by frame."""
    mode = "nearest-exact" if upscale.method == "nearest" else upscale.method
    larger: Tensor = F.interpolate(fold_frames(latents), (height, width), mode=mode)
    return unfold_frames(larger, latents.shape[2])
