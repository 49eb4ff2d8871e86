"""Regions: parts of the frame with prompts of their own."""

from collections.abc import Iterator
from dataclasses import replace

from ..diffusion.conditioning import Conditioning, Region
from ..diffusion.text import embed_pair
from ..diffusion.windows import is_divided
from ..errors import PromptFileError
from ..jobs import Job
from .images import from_start, images_source, mask_of
from .kind import Check, ImageSources, Kind, LoadedModel, PlannedModel


def _images(job: Job) -> ImageSources:
    for i, region in enumerate(job.regions):
        yield f"regions[{i}].mask", images_source(region.mask, job)


def _checks(job: Job, model: PlannedModel, offline: bool) -> Iterator[Check]:
    yield "", lambda: _check_prompts(job)


def _check_prompts(job: Job) -> None:
    for region in job.regions:
        if 0 not in from_start(region.prompt, job.frames, "regions.prompt"):
            raise PromptFileError("regions.prompt must have a text for frame 0")


def _apply(
    conditioning: Conditioning, job: Job, model: LoadedModel, size: tuple[int, int]
) -> Conditioning:
    regions = []
    for one in job.regions:
        prompt = from_start(one.prompt, job.frames, "regions.prompt")
        text, _ = embed_pair(
            model.base, prompt, job.negative_prompt, job.frames,
            travel=job.travel, clip_skip=job.clip_skip,
        )  # fmt: skip
        conditions = conditioning.conditions
        if conditions.pooled_text is not None:
            conditions = replace(conditions, pooled_text=text.pooled)
        region = Region(
            text=text.for_unet(divided=is_divided(job.window, job.frames)),
            mask=mask_of(one.mask, job, model, size).to(model.device),
            conditions=conditions,
        )
        regions.append(region)
    return replace(conditioning, regions=tuple(regions))


REGIONS = Kind(images=_images, checks=_checks, apply=_apply)
