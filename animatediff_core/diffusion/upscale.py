"""The second pass: a clip's latents made larger, then denoised from part of the way.

Legend: b batch, f frames, c channels, h w latent size.
"""

from torch import Tensor
from torch.nn import functional as F

from ..jobs import Upscale


def enlarge(latents: Tensor, height: int, width: int, upscale: Upscale) -> Tensor:
    """b c f h w to b c f `height` `width`, frame by frame."""
    mode = "nearest-exact" if upscale.method == "nearest" else upscale.method
    frames = latents.transpose(1, 2).flatten(0, 1)  # (b f) c h w
    larger: Tensor = F.interpolate(frames, (height, width), mode=mode)
    clips: Tensor = larger.unflatten(0, (len(latents), -1)).transpose(1, 2)
    return clips
