"""Known regions: latents that a clip keeps, by inpainting mask or as whole frames.

Legend: b batch, f frames, c channels, h w latent size, H W pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.models import AutoencoderKL
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class KnownRegion:
    """Latents that a clip keeps outside its inpainting mask."""

    latents: Tensor
    """Clean, 1 c f h w."""
    mask: Tensor
    """Inpainting mask, 1 1 f h w, 0 to 1: 1 is denoised, 0 keeps these latents."""

    def blend(
        self, x: Tensor, noise: Tensor, scheduler: SchedulerMixin, timestep: Tensor | None
    ) -> Tensor:
        """Latents x, b c f h w, with the known ones in their place.

        The known latents get the noise level of `timestep`; None is the end, without noise. noise:
        the clip's initial noise, of unit variance.
        """
        clean = self.latents.to(x).expand_as(x)
        known = clean
        if timestep is not None:
            known = scheduler.add_noise(clean, noise.to(x), timestep.reshape(1))
        mask = self.mask.to(x)
        blended: Tensor = mask * x + (1 - mask) * known
        return blended


@torch.no_grad()
def encode_images(vae: AutoencoderKL, images: np.ndarray, *, chunk: int = 8) -> Tensor:
    """Images f H W 3 uint8 to latents 1 c f h w: the mode of the VAE posterior (deterministic)."""
    parts = []
    for start in range(0, len(images), chunk):
        pixels = torch.from_numpy(images[start : start + chunk].copy()).to(vae.device)
        pixels = (pixels.permute(0, 3, 1, 2).to(vae.dtype) / 127.5) - 1  # f 3 H W
        parts.append(vae.encode(pixels, return_dict=False)[0].mode().float())
    latents: Tensor = torch.cat(parts) * vae.config.scaling_factor
    return latents.transpose(0, 1).unsqueeze(0)


def latent_mask(images: np.ndarray, vae_scale_factor: int) -> Tensor:
    """Masks f H W 3 uint8, white is denoised, to 1 1 f h w.

    A latent's value is the largest of its pixels, so that nothing that a mask covers shows through.
    """
    bright = torch.from_numpy(images.max(axis=3)).float().unsqueeze(1) / 255  # f 1 H W
    return F.max_pool2d(bright, vae_scale_factor).transpose(0, 1).unsqueeze(0)


def known_frames(latents: Mapping[int, Tensor], frames: int) -> KnownRegion:
    """Whole frames that a clip keeps: latents 1 c 1 h w by number."""
    some = next(iter(latents.values()))
    clean = torch.zeros_like(some).repeat(1, 1, frames, 1, 1)
    mask = torch.ones_like(clean[:, :1])
    for number, frame in latents.items():
        clean[:, :, number] = frame[:, :, 0]
        mask[:, :, number] = 0
    return KnownRegion(latents=clean, mask=mask)
