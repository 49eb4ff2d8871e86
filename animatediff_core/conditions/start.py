"""Video to video: the clip begins from a video, and keeps it outside an inpainting mask."""

from dataclasses import replace

from ..diffusion.conditioning import Conditioning
from ..diffusion.known_region import KnownRegion
from ..jobs import Job
from .images import images_of_size, images_source, latents_of, mask_of
from .kind import ImageSources, Kind, LoadedModel


def _images(job: Job) -> ImageSources:
    if job.start is None:
        return
    yield "start.images", images_source(job.start.images, job)
    if job.start.mask is not None:
        yield "start.mask", images_source(job.start.mask, job, mask=True)


def _apply(
    conditioning: Conditioning, job: Job, model: LoadedModel, size: tuple[int, int]
) -> Conditioning:
    if job.start is None:
        return conditioning
    video = latents_of(model, images_of_size(job.start.images, job, size))
    known = None
    if job.start.mask is not None:
        mask = mask_of(job.start.mask, job, model, size)
        known = KnownRegion(latents=video, mask=mask.to(video))
    return replace(conditioning, source=video, known=known)


START = Kind(
    images=_images,
    strength=lambda job: None if job.start is None else job.start.strength,
    apply=_apply,
)
