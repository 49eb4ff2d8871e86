"""Small images of the clip in work, from its latents by a linear map.

Legend: f frames, c channels of the latents, h w latent size.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers.models import AutoencoderKL
from torch import Tensor

from ..diffusion.step_info import StepInfo
from ..jobs import Job, output_name
from ..media.image import write_image
from ..media.names import remove
from .placement import PlacedModel

_PATCHES, _LATENTS = 8, 4
"""Sides of the chart of colours: patches, and latents of a patch."""
_IMAGES, _TIMES, _SIDE = 4, 8, 512
"""Frames of a preview, previews of a clip, and pixels of a preview's longer side at most."""


class Preview:
    """The preview files of the jobs of one model: NAME.preview.png in the output folder."""

    def __init__(self, model: PlacedModel, folder: Path) -> None:
        self.model, self.folder = model, folder
        self._colours: Tensor | None = None

    def path(self, job: Job) -> Path:
        """The file of a job's preview."""
        return self.folder / f"{output_name(job)}.preview.png"

    def show(self, job: Job, info: StepInfo, latents: Tensor) -> None:
        """Write a preview of latents, 1 c f h w, every few steps."""
        if info.window or info.step % max(1, info.steps // _TIMES):
            return
        if self._colours is None:
            self._colours = colours_of(self.model.base.vae)
        chosen = torch.linspace(0, latents.shape[2] - 1, _IMAGES).round().long().unique()
        frames = as_rgb(latents[0, :, chosen.to(latents.device)], self._colours)
        image = np.concatenate(list(frames), axis=1)
        scale = max(1, _SIDE // max(image.shape[:2]))
        write_image(image.repeat(scale, 0).repeat(scale, 1), self.path(job))

    def over(self, job: Job) -> None:
        """Remove the preview of a job whose frames are made, or which failed."""
        remove(self.path(job))


@torch.no_grad()
def colours_of(vae: AutoencoderKL) -> Tensor:
    """The linear map c+1 3 from latents to RGB in 0..1, fitted to a chart of 64 colours."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.rand(_PATCHES**2, 3, generator=generator)
    side = _LATENTS * 2 ** (len(vae.config.block_out_channels) - 1)
    chart = colours.T.view(1, 3, _PATCHES, _PATCHES)
    chart = chart.repeat_interleave(side, 2).repeat_interleave(side, 3)
    weight = next(vae.parameters())
    encoded = vae.encode((chart * 2 - 1).to(weight.device, weight.dtype)).latent_dist.mode()
    latents = encoded.float().cpu()[0].unfold(1, _LATENTS, _LATENTS).unfold(2, _LATENTS, _LATENTS)
    inner = latents[..., 1:-1, 1:-1].mean((-2, -1)).flatten(1).T * vae.config.scaling_factor
    solution: Tensor = torch.linalg.lstsq(_with_one(inner), colours).solution
    return solution


def as_rgb(latents: Tensor, colours: Tensor) -> np.ndarray:
    """Latents c f h w to f h w 3 uint8."""
    rows = latents.float().cpu().permute(1, 2, 3, 0)
    return ((_with_one(rows) @ colours).clamp(0, 1) * 255).byte().numpy()


def _with_one(rows: Tensor) -> Tensor:
    return torch.cat([rows, torch.ones(*rows.shape[:-1], 1)], dim=-1)
