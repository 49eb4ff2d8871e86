"""Regions: parts of the frame with prompts of their own."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from ..diffusion.conditioning import Conditioning, Region
from ..diffusion.prompt_syntax import check_prompt
from ..diffusion.text import embed_pair
from ..diffusion.windows import is_divided
from ..errors import Check
from ..jobs import Job
from .images import images_source, mask_of
from .kind import ImageSources, Kind, LoadedModel, PlannedModel


def _images(job: Job) -> ImageSources:
    for i, region in enumerate(job.regions):
        yield f"regions[{i}].mask", images_source(region.mask, job, mask=True)


def _checks(job: Job, model: PlannedModel, offline: bool) -> Iterator[Check]:
    for i, region in enumerate(job.regions):
        for frame, text in region.prompt.items():
            yield f"regions[{i}].prompt[{frame}]", partial(check_prompt, text)


def _apply(
    conditioning: Conditioning, job: Job, model: LoadedModel, size: tuple[int, int]
) -> Conditioning:
    regions = []
    for one in job.regions:
        text, _ = embed_pair(
            model.base,
            one.prompt,
            job.negative_prompt,
            job.frames,
            travel=job.travel,
            travel_loop=job.travel_loop,
            clip_skip=job.clip_skip,
        )
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
