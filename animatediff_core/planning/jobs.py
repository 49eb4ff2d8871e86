"""Everything about jobs that can be checked and foreseen before a model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import AnimateDiffError
from ..jobs import Job
from .conditions import check_control
from .job_checks import check_length, check_sampler, check_sizes, check_text
from .models import Found, Parts, find, problems_of
from .output import check_output


@dataclass(frozen=True)
class Planned:
    """A job whose files are here and fit."""

    job: Job
    found: Found


def plan(jobs: Sequence[Job], *, offline: bool = False) -> list[Planned]:
    """Check everything that can be checked without loading; all problems in one error."""
    found: dict[Parts, Found | AnimateDiffError] = {}
    problems: list[AnimateDiffError] = []
    planned = []
    for job in jobs:
        parts = parts_of(job)
        if parts not in found:
            try:
                found[parts] = find(parts, offline=offline)
            except AnimateDiffError as error:
                found[parts] = error
        there = found[parts]
        if isinstance(there, AnimateDiffError):
            problems.append(there)
            continue
        try:
            _check_job(job, there)
            check_control(job, there, offline=offline)
        except AnimateDiffError as error:
            problems.append(error)
        planned.append(Planned(job, there))
    problems_of(problems)
    return planned


def parts_of(job: Job) -> Parts:
    """The model that a job needs."""
    return Parts(
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


def _check_job(job: Job, found: Found) -> None:
    check_length(job, found)
    check_sizes(job, found.factor)
    check_text(job, found)
    check_sampler(job, found)
    check_output(job)
