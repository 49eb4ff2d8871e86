"""The use case `generate`: jobs in, clips out, one result a job, models loaded once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoints.base import BaseModel
from ..diffusion.windows import divides, most_scales
from ..errors import AnimateDiffError, CheckpointError, SurroundingsError
from ..jobs import Job
from ..motion import AnimatedUNet, inflate
from ..speed import optimize, optimize_vae
from .control import ControlModels
from .control_plan import check_control
from .device import choose
from .job_check import check_sampler, check_text
from .model import Found, Parts, find, load, problems_of
from .sampling import Step, sample
from .writing import check_output, write


@dataclass(frozen=True)
class Loading:
    """A model is being loaded."""

    source: str
    jobs: int
    """How many jobs use it."""


@dataclass(frozen=True)
class Result:
    """One job is over."""

    job: Job
    path: Path | None
    """The clip, where it was written."""
    frames: np.ndarray | None
    """f h w 3 uint8."""
    error: AnimateDiffError | None


@dataclass(frozen=True)
class Planned:
    """A job whose files are here and fit."""

    job: Job
    found: Found


def generate(
    jobs: Sequence[Job],
    *,
    output_dir: str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> Iterator[Result]:
    """Make the clips of all jobs; one failing job does not end the others.

    Raises before anything runs where a job cannot work (see `plan`).
    """
    for event in run(jobs, output_dir=output_dir, device=device, dtype=dtype):
        if isinstance(event, Result):
            yield event


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
        embeddings=job.embeddings,
    )


def _check_job(job: Job, found: Found) -> None:
    _check_length(job, found)
    _check_sizes(job, found.factor)
    check_text(job, found)
    check_sampler(job, found)
    check_output(job)


def _check_sizes(job: Job, factor: int) -> None:
    """Width and height suit the VAE, made larger too."""
    for side in ("width", "height"):
        size = getattr(job, side)
        if size % factor:
            lower = max(size // factor, 1) * factor
            raise CheckpointError(
                f"{job.name}: {side} {size} is no multiple of {factor}, as the VAE needs; "
                f"use {lower} or {lower + factor}"
            )
    if job.upscale is None:
        return
    for side in ("width", "height"):
        size, scale = getattr(job, side), job.upscale.scale
        if abs(size * scale / factor - round(size * scale / factor)) > 1e-6:
            lower = int(size * scale / factor)
            near = " or ".join(
                f"{n * factor / size:g}" for n in (lower, lower + 1) if n * factor > size
            )
            raise CheckpointError(
                f"{job.name}: upscale.scale {scale:g} makes {side} {size} to {size * scale:g}, no "
                f"multiple of {factor}, as the VAE needs; use {near}"
            )


def _check_length(job: Job, found: Found) -> None:
    """What the motion module sees at once is no longer than it knows."""
    longest, window = found.motion_config.max_frames, job.window
    name = found.motion.name
    if job.noise.type == "freenoise" and window is None:
        raise CheckpointError(
            f"{job.name}: noise.type freenoise repeats a window's noise; set window.length (-C), "
            "or use another type"
        )
    if window is not None and window.length > longest:
        raise CheckpointError(
            f"{job.name}: window.length (-C) is {window.length}, but {name} knows {longest} "
            f"frames at most; lower it to {longest}"
        )
    if window is None or not divides(window, job.frames):
        if job.frames > longest:
            raise CheckpointError(
                f"{job.name}: {job.frames} frames, but {name} knows {longest} at most; set "
                f"window.length (-C) to {longest} or less, or lower frames (-L) to {longest}"
            )
        return
    if window.stride > (most := most_scales(window, job.frames)):
        raise CheckpointError(
            f"{job.name}: window.stride {window.stride} (-S {window.stride - 1}) spreads a window "
            f"over more than the {job.frames} frames; lower it to {most} (-S {most - 1}), or lower "
            "window.length (-C)"
        )


def run(
    jobs: Sequence[Job],
    *,
    output_dir: str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    offline: bool = False,
) -> Iterator[Loading | Step | Result]:
    """As `generate`, with the progress in between."""
    where, kind = choose(device, dtype)
    planned = plan(jobs, offline=offline)
    folder = Path(output_dir or "outputs")
    groups: dict[Parts, list[Planned]] = {}
    for one in planned:
        groups.setdefault(one.found.parts, []).append(one)
    for members in groups.values():
        yield from _run_group(members, folder, where, kind, offline)


def _run_group(
    members: Sequence[Planned], folder: Path, where: torch.device, kind: torch.dtype, offline: bool
) -> Iterator[Loading | Step | Result]:
    """All jobs of one model, which is loaded for them and gone after them."""
    found = members[0].found
    yield Loading(found.parts.base, len(members))
    try:
        base, motion = load(found, offline=offline)
        base.to(where, kind)
        animated = optimize(inflate(base.unet, motion.to(where, kind)))
        optimize_vae(base.vae)
    except AnimateDiffError as error:
        yield from (Result(one.job, None, None, error) for one in members)
        return
    except (torch.OutOfMemoryError, MemoryError):
        full = SurroundingsError(f"{found.parts.base}: not enough memory on {where} to load it")
        yield from (Result(one.job, None, None, full) for one in members)
        return
    models = ControlModels(base=base, device=where, dtype=kind, offline=offline)
    for one in members:
        yield from _run_job(one.job, base, animated, folder, models)


def _run_job(
    job: Job, base: BaseModel, animated: AnimatedUNet, folder: Path, models: ControlModels
) -> Iterator[Step | Result]:
    try:
        frames, notes = None, dict[str, Any]()
        for event in sample(job, base, animated, folder=folder, notes=notes, models=models):
            if isinstance(event, Step):
                yield event
            else:
                frames = event
        assert frames is not None
        path = write(job, frames, base, folder, notes=notes)
    except (torch.OutOfMemoryError, MemoryError):
        device = animated.unet.device
        message = f"{job.name}: not enough memory on {device}; lower the size or the frames"
        yield Result(job, None, None, SurroundingsError(message))
    except AnimateDiffError as error:
        yield Result(job, None, None, error)
    except OSError as error:
        message = (
            f"{folder}: cannot be written to ({error.strerror or error}); choose another folder"
        )
        yield Result(job, None, None, SurroundingsError(message))
    else:
        yield Result(job, path, frames, None)
