"""Everything about jobs that can be checked and foreseen before a model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import AnimateDiffError
from ..jobs import Job
from .conditions import check_control
from .job_checks import check_length, check_sampler, check_sizes, check_text
from .models import FoundModel, ModelSpec, find_model, raise_all
from .output import check_output


@dataclass(frozen=True)
class Planned:
    """A job whose files are here and fit."""

    job: Job
    found: FoundModel


def plan(jobs: Sequence[Job], *, offline: bool = False) -> list[Planned]:
    """Check everything that can be checked without loading; all problems in one error."""
    found: dict[ModelSpec, FoundModel | AnimateDiffError] = {}
    problems: list[AnimateDiffError] = []
    planned = []
    for job in jobs:
        spec = spec_of(job)
        if spec not in found:
            try:
                found[spec] = find_model(spec, offline=offline)
            except AnimateDiffError as error:
                found[spec] = error
        there = found[spec]
        if isinstance(there, AnimateDiffError):
            problems.append(there)
            continue
        try:
            _check_job(job, there)
            check_control(job, there, offline=offline)
        except AnimateDiffError as error:
            problems.append(error)
        planned.append(Planned(job, there))
    raise_all(problems)
    return planned


def spec_of(job: Job) -> ModelSpec:
    """The model that a job needs."""
    return ModelSpec(
        base=job.base,
        variant=job.variant,
        motion=job.motion,
        motion_version=job.motion_version,
        vae=job.vae,
        prediction_type=job.prediction_type,
        loras=job.loras,
        motion_loras=job.motion_loras,
        camera=job.camera,
        embeddings=job.embeddings,
    )


def _check_job(job: Job, found: FoundModel) -> None:
    check_length(job, found)
    check_sizes(job, found.vae_scale_factor)
    check_text(job, found)
    check_sampler(job, found)
    check_output(job)
