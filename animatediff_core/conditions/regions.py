"""Regions: parts of the frame with prompts of their own."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

from ..diffusion.conditioning import Conditioning, Region
from ..diffusion.text import embed_pair
from ..diffusion.windows import is_divided
from ..errors import Check, PromptFileError
from ..jobs import Job
from .images import images_source, mask_of
from .kind import ImageSources, Kind, LoadedModel, PlannedModel


def _images(job: Job) -> ImageSources:
    for i, region in enumerate(job.regions):
        yield f"regions[{i}].mask", images_source(region.mask, job, mask=True)


def _checks(job: Job, model: PlannedModel, offline: bool) -> Iterator[Check]:
    for i, region in enumerate(job.regions):
        yield f"regions[{i}].prompt", partial(_check_prompt, region.prompt)


def _check_prompt(prompt: Mapping[int, str]) -> None:
    if 0 not in prompt:
        raise PromptFileError("must have a text for frame 0")


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
