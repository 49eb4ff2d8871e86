"""Parts of a clip that are given and stay: masks (inpainting) and whole frames (image to video).

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
class Kept:
    """Latents that a clip keeps where its mask says so."""

    latents: Tensor
    """Clean, 1 c f h w."""
    mask: Tensor
    """1 1 f h w, 0 to 1: 1 where the clip is made anew, 0 where it keeps these latents."""

    def blend(
        self, x: Tensor, noise: Tensor, scheduler: SchedulerMixin, timestep: Tensor | None
    ) -> Tensor:
        """What is kept, as noisy as the clip x is before `timestep` (None: it is done), in its
        place in x, b c f h w; noise is the clip's first one, of unit variance."""
        clean = self.latents.to(x).expand_as(x)
        kept = clean
        if timestep is not None:
            kept = scheduler.add_noise(clean, noise.to(x), timestep.reshape(1))
        mask = self.mask.to(x)
        blended: Tensor = mask * x + (1 - mask) * kept
        return blended


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: np.ndarray, *, chunk: int = 8) -> Tensor:
    """Pictures f H W 3 uint8 to latents 1 c f h w: the middle of what the VAE holds likely,
    so that nothing is drawn."""
    parts = []
    for start in range(0, len(pictures), chunk):
        pixels = torch.from_numpy(pictures[start : start + chunk].copy()).to(vae.device)
        pixels = (pixels.permute(0, 3, 1, 2).to(vae.dtype) / 127.5) - 1  # f 3 H W
        parts.append(vae.encode(pixels, return_dict=False)[0].mode().float())
    latents: Tensor = torch.cat(parts) * vae.config.scaling_factor
    return latents.transpose(0, 1).unsqueeze(0)


def latent_mask(pictures: np.ndarray, factor: int) -> Tensor:
    """Masks f H W 3 uint8, white where the clip is made anew, to 1 1 f h w.

    A latent is made anew as far as any of its `factor` x `factor` pixels is, so that nothing of
    what a mask covers shows through.
    """
    bright = torch.from_numpy(pictures.max(axis=3)).float().unsqueeze(1) / 255  # f 1 H W
    return F.max_pool2d(bright, factor).transpose(0, 1).unsqueeze(0)


def known_frames(latents: Mapping[int, Tensor], frames: int) -> Kept:
    """Frames that are given whole: latents 1 c 1 h w by number; the others are made anew."""
    some = next(iter(latents.values()))
    clean = torch.zeros_like(some).repeat(1, 1, frames, 1, 1)
    mask = torch.ones_like(clean[:, :1])
    for number, one in latents.items():
        clean[:, :, number] = one[:, :, 0]
        mask[:, :, number] = 0
    return Kept(latents=clean, mask=mask)


def between(latents: Mapping[int, Tensor], frames: int) -> Tensor:
    """A clip 1 c f h w that goes linearly from each given frame, 1 c 1 h w by number, to the
    next; before the first and after the last it stands still."""
    numbers = sorted(latents)
    made = []
    for frame in range(frames):
        before = max((n for n in numbers if n <= frame), default=numbers[0])
        after = min((n for n in numbers if n >= frame), default=numbers[-1])
        share = 0.0 if after == before else (frame - before) / (after - before)
        made.append(torch.lerp(latents[before], latents[after], share))
    return torch.cat(made, dim=2)
