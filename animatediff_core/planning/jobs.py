"""Everything about jobs that can be checked and foreseen before a model is loaded."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

from ..conditions import KINDS
from ..errors import Check, Problems
from ..jobs import Job
from ..media.image_source import ImageSource, check_images
from .job_checks import job_checks, knows_no_word, model_checks
from .models import Bases, FoundModel, ModelSpec, find_model
from .output import check_output

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Planned:
    """A job whose files are here and fit."""

    job: Job
    found: FoundModel


def plan(jobs: Sequence[Job], *, offline: bool = False) -> list[Planned]:
    """Check everything that can be checked without loading; all problems in one error."""
    found: dict[ModelSpec, FoundModel | None] = {}
    bases: Bases = {}
    problems, planned = Problems(), []
    check_once = cache(check_images)
    for job in jobs:
        spec = spec_of(job)
        if spec not in found:
            found[spec] = None
            with problems.collecting(job.origin or job.name):
                found[spec] = find_model(spec, offline=offline, bases=bases)
        model = found[spec]
        problems.run(_checks(job, model, offline, check_once), job.origin or job.name)
        if model is not None:
            planned.append(Planned(job, model))
            if knows_no_word(job, model):
                message = "%s: %s knows no word of the prompt, so the clip will not show it"
                log.warning(message, job.origin or job.name, job.base)
    problems.check()
    return planned


def _checks(
    job: Job, model: FoundModel | None, offline: bool, check: Callable[[ImageSource], None]
) -> Iterator[Check]:
    """Every check of a job; without its model, those that need none."""
    yield from job_checks(job)
    if model is not None:
        yield from model_checks(job, model)
    yield "output", partial(check_output, job)
    for kind in KINDS:
        if model is not None:
            yield from kind.checks(job, model, offline)
        for key, source in kind.images(job):
            yield key, partial(check, source)


def spec_of(job: Job) -> ModelSpec:
    """The model that a job needs."""
    return ModelSpec(
        base=job.base,
        variant=job.variant,
        motion=job.motion,
        motion_version=job.motion_version,
        unet=job.unet,
        vae=job.vae,
        prediction_type=job.prediction_type,
        loras=tuple(lora for lora in job.loras if lora.weights is None),
        motion_loras=job.motion_loras,
        camera=job.camera,
        embeddings=job.embeddings,
    )
