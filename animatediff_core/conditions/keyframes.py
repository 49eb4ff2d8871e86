"""Image to video: frames of the clip that are given images.

Legend: k key frames, f frames, c channels, h w latent size.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch

from ..diffusion.conditioning import Conditioning
from ..diffusion.interpolation import interpolate
from ..diffusion.known_region import KnownRegion, known_frames
from ..errors import Check, PromptFileError
from ..jobs import Job
from .images import image_of_size, key_frame_sources, latents_of
from .kind import ImageSources, Kind, LoadedModel, PlannedModel


def _images(job: Job) -> ImageSources:
    if job.keyframes is not None:
        yield from key_frame_sources(
            job.keyframes.images, job, job.keyframes.fit, "keyframes.images"
        )


def _checks(job: Job, model: PlannedModel, offline: bool) -> Iterator[Check]:
    yield "free_init", lambda: _check_free_init(job)


def _check_free_init(job: Job) -> None:
    begins = job.start is not None or (job.keyframes is not None and job.keyframes.strength < 1)
    if begins and job.free_init is not None:
        raise PromptFileError(
            "free_init begins from noise alone; it does not go with start, nor with keyframes "
            "whose strength is below 1"
        )


def _apply(
    conditioning: Conditioning, job: Job, model: LoadedModel, size: tuple[int, int]
) -> Conditioning:
    """Key frames lie over a known region of the video."""
    keyframes = job.keyframes
    if keyframes is None:
        return conditioning
    latents = {
        frame: latents_of(model, image_of_size(path, job, keyframes.fit, size)[None])
        for frame, path in keyframes.images.items()
    }  # 1 c 1 h w each
    known, source = known_frames(latents, job.frames), conditioning.source
    if (video := conditioning.known) is not None:
        merged = torch.where(known.mask == 0, known.latents, video.latents)
        known = KnownRegion(latents=merged, mask=known.mask * video.mask)
    if source is None and keyframes.strength < 1:
        at_keys = torch.cat(list(latents.values()), dim=2)[0].transpose(0, 1)  # k c h w
        by_frame = interpolate(at_keys, list(latents), range(job.frames))  # f c h w
        source = by_frame.transpose(0, 1).unsqueeze(0)  # 1 c f h w
    return replace(conditioning, known=known, source=source)


KEYFRAMES = Kind(
    images=_images,
    checks=_checks,
    strength=lambda job: None if job.keyframes is None else job.keyframes.strength,
    apply=_apply,
)
