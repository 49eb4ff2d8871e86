"""PIA: a motion module that animates an image.

Legend: b batch, f frames, c channels, h w latent size.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch

from ..diffusion.conditioning import Conditioning
from ..diffusion.pia_mask import pia_mask
from ..errors import Check, CheckpointError
from ..jobs import Job
from .images import image_of_size, image_source, latents_of
from .kind import ImageSources, Kind, LoadedModel, PlannedModel


def _images(job: Job) -> ImageSources:
    if job.animate is not None:
        yield "animate.image", image_source(job.animate.image, job, job.animate.fit)


def _checks(job: Job, model: PlannedModel, offline: bool) -> Iterator[Check]:
    yield "animate", lambda: _check_motion(job, model)


def _check_motion(job: Job, model: PlannedModel) -> None:
    pia = model.motion_config.conv_in_channels is not None
    if pia and job.animate is None:
        raise CheckpointError(
            f"{model.motion_path.name} is a PIA module, which animates an image; name it with "
            "animate, or use another motion module"
        )
    if job.animate is not None and not pia:
        raise CheckpointError(
            f"animate needs a PIA motion module, but {model.motion_path.name} is "
            f"{model.motion_config.version}; other modules make a clip of an image with keyframes"
        )


def _apply(
    conditioning: Conditioning, job: Job, model: LoadedModel, size: tuple[int, int]
) -> Conditioning:
    if job.animate is None:
        return conditioning
    image = image_of_size(job.animate.image, job, job.animate.fit, size)
    latents = latents_of(model, image[None]).expand(-1, -1, job.frames, -1, -1)  # 1 c f h w
    mask = pia_mask(job.animate.motion, job.frames).view(1, 1, -1, 1, 1)
    mask = mask.to(latents).expand(1, 1, -1, *latents.shape[3:])
    image_latents = torch.cat([mask, latents], dim=1).to(model.dtype)
    return conditioning.in_both(lambda one: replace(one, image_latents=image_latents))


ANIMATE = Kind(images=_images, checks=_checks, apply=_apply)
