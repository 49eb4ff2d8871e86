"""Images of conditions: where they are, and as pixels or latents of a clip's size.

Legend: b batch, f frames, c channels, h w latent size, H W pixels.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..diffusion.known_region import encode_images, latent_mask
from ..jobs import Job
from ..jobs.choices import Fit
from ..jobs.conditions import Images
from ..media.image_source import ImageSource, fit_image, read_images, spread
from .kind import ImageSources, LoadedModel


def images_source(images: Images, job: Job, *, mask: bool = False) -> ImageSource:
    """An image for every frame of a job's clip."""
    numbers = spread(job.frames, images.first, images.every)
    return ImageSource(Path(images.path), numbers, (job.width, job.height), images.fit, mask)


def image_source(path: str, job: Job, fit: Fit) -> ImageSource:
    """One image."""
    return ImageSource(Path(path), (0,), (job.width, job.height), fit)


def key_frame_sources(images: Mapping[int, str], job: Job, fit: Fit, key: str) -> ImageSources:
    """Images at key frames."""
    for frame, path in images.items():
        yield f"{key}[{frame}]", image_source(path, job, fit)


def images_of_size(
    images: Images, job: Job, size: tuple[int, int], *, mask: bool = False
) -> np.ndarray:
    """f H W 3 uint8 of this width and height."""
    frames = read_images(images_source(images, job, mask=mask))
    return np.stack([fit_image(one, size, "stretch") for one in frames])


def image_of_size(path: str, job: Job, fit: Fit, size: tuple[int, int]) -> np.ndarray:
    """H W 3 uint8 of this width and height."""
    return fit_image(read_images(image_source(path, job, fit))[0], size, "stretch")


def pixels(images: np.ndarray) -> Tensor:
    """f H W 3 uint8 -> 1 3 f H W, 0 to 1."""
    return torch.from_numpy(images.copy()).permute(3, 0, 1, 2).unsqueeze(0).float() / 255


def latents_of(model: LoadedModel, images: np.ndarray) -> Tensor:
    """f H W 3 uint8 -> 1 c f h w, clean, on the model's device."""
    return encode_images(model.base.vae, images).to(model.device)


def mask_of(images: Images, job: Job, model: LoadedModel, size: tuple[int, int]) -> Tensor:
    """A mask, 1 1 f h w: 1 where the images are white."""
    white = images_of_size(images, job, size, mask=True)
    return latent_mask(white, model.base.vae_scale_factor)
