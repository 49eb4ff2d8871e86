"""The use case `generate`: jobs in, clips out, one result a job, models loaded once."""

import gc
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from ..diffusion.step_info import StepInfo
from ..errors import AnimateDiffError, MachineError, UnexpectedError
from ..jobs import Job
from ..media.frames import Frames
from ..planning.memory import FASTEST, num_parameters
from ..planning.models import ModelSpec
from ..sampling.compiling import compiling_explained
from ..sampling.device import made_with
from ..sampling.loading import load_model
from ..sampling.output import write
from ..sampling.placement import PlacedModel
from ..sampling.preview import Preview
from ..sampling.provenance import condition_files
from ..sampling.sample import sample
from . import timing
from .generate_plan import PlannedClip, plan_run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loading:
    """A model is being loaded."""

    source: str
    jobs: int
    """Number of jobs that use it."""
    num_parameters: int
    device: str
    dtype: str


@dataclass(frozen=True)
class JobStep:
    """A denoising step of a job is done, or one context window of a step."""

    job: Job
    info: StepInfo


@dataclass(frozen=True)
class Writing:
    """The frames of a job are made, and its clip is being written."""

    job: Job


@dataclass(frozen=True)
class Result:
    """A job is over: the clip is written, or it failed."""

    job: Job
    path: Path | None
    """The clip's file; None if it was not written."""
    frames: Frames | None
    """f h w 3 uint8."""
    error: AnimateDiffError | None


@dataclass(frozen=True)
class _Finished:
    """A job's frames, which are not written yet."""

    job: Job
    frames: Frames
    made_with: dict[str, Any]
    """Settings of the sidecar besides the job's."""


Event = Loading | JobStep | Writing | Result
_Unwritten = Loading | JobStep | Result | _Finished


def generate(
    jobs: Sequence[Job],
    *,
    output_dir: str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> Iterator[Result]:
    """Make the clips of all jobs; one failing job does not end the others.

    While a clip is written the next one is begun; results come in the order of the clips. Raises
    before anything runs if a job cannot work (see `plan`).
    """
    for event in run(jobs, output_dir=output_dir, device=device, dtype=dtype):
        if isinstance(event, Result):
            yield event


def run(
    jobs: Sequence[Job],
    *,
    output_dir: str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    offline: bool = False,
    low_vram: bool = False,
    compiled: bool = False,
    preview: bool = False,
) -> Iterator[Event]:
    """`generate` with its progress.

    `low_vram` starts with the least memory, `compiled` compiles the UNet with torch.compile,
    `preview` shows the clip in work as a small image.
    """
    folder = Path(output_dir or "outputs")
    planned = plan_run(
        jobs, folder, device, dtype, offline=offline, low_vram=low_vram, compiled=compiled
    )
    groups: dict[tuple[ModelSpec, torch.dtype], list[PlannedClip]] = {}
    for clip in planned:
        groups.setdefault((clip.found.spec, clip.placement.dtype), []).append(clip)
    made = (_run_group(members, folder, offline, preview) for members in groups.values())
    events = chain.from_iterable(made)
    yield from _write_behind(events, folder)


def _write_behind(events: Iterator[_Unwritten], folder: Path) -> Iterator[Event]:
    """Write finished clips in a thread, one at a time, while the next one is made.

    After an interruption the clip that is being written is written to its end, and reported.
    """
    writing: Future[Result] | None = None
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="writing") as thread:
        try:
            for event in events:
                if writing is not None and (
                    writing.done() or isinstance(event, _Finished | Result)
                ):
                    done, writing = writing.result(), None
                    yield done
                if isinstance(event, _Finished):
                    writing = thread.submit(_write, event, folder)
                    yield Writing(event.job)
                else:
                    yield event
            if writing is not None:
                done, writing = writing.result(), None
                yield done
        except (KeyboardInterrupt, SystemExit):  # Ctrl-C, or ended by the system
            if writing is not None:
                yield writing.result()
            raise


def _write(clip: _Finished, folder: Path) -> Result:
    """The result of a job whose frames are made."""
    job = clip.job
    try:
        return Result(job, write(job, clip.frames, clip.made_with, folder), clip.frames, None)
    except MemoryError:
        message = f"{job.name}: not enough memory to write it; lower the size or the frames"
        return Result(job, None, None, MachineError(message))
    except Exception as error:  # the one place that makes any error of a job that job's failure
        return _failed(job, error, folder)


def _failed(job: Job, error: Exception, folder: Path) -> Result:
    """The result of a job that failed: its error without the traceback, which holds the model."""
    if isinstance(error, OSError):
        error = MachineError(
            f"{folder}: cannot be written to ({error.strerror or error}); choose another folder"
        )
    elif not isinstance(error, AnimateDiffError):
        error = UnexpectedError.of(error, job.name)
    cause: BaseException | None = error
    while cause is not None:
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__
    return Result(job, None, None, error)


def _run_group(
    members: Sequence[PlannedClip], folder: Path, offline: bool, preview: bool
) -> Iterator[_Unwritten]:
    """All jobs of one model, which is loaded for them and freed before the next one is loaded."""
    found, placement = members[0].found, members[0].placement
    dtype = str(placement.dtype).removeprefix("torch.")
    device = str(placement.device)
    yield Loading(found.spec.base, len(members), num_parameters(found), device, dtype)
    gc.collect()  # what is left of the last model, whole or not, is a cycle
    try:
        parts = load_model(found, dtype=placement.dtype, offline=offline)
        model = PlacedModel(*parts, placement, offline=offline)
    except (torch.OutOfMemoryError, MemoryError):
        message = f"{found.spec.base}: not enough memory on {placement.device} to load it"
        full = MachineError(message)
        yield from (Result(one.job, None, None, full) for one in members)
        return
    except Exception as error:  # as in _write
        failed = error
        yield from (_failed(one.job, failed, folder) for one in members)
        return
    shown = Preview(model, folder) if preview else None
    for one in members:
        yield from _run_job(one.job, model, folder, shown)


def _run_job(
    job: Job, model: PlacedModel, folder: Path, preview: Preview | None
) -> Iterator[_Unwritten]:
    """One job, repeated with less memory as long as there is a fallback."""
    while True:
        try:
            yield from _attempt(job, model, folder, preview)
            return
        except (torch.OutOfMemoryError, MemoryError):
            pass  # the frames of the error must go before the next attempt
        device = model.placement.device
        if not model.use_less_memory():
            message = f"{job.name}: not enough memory on {device}; lower the size or the frames"
            yield Result(job, None, None, MachineError(message))
            return
        memory = model.placement.memory
        log.warning("%s: not enough memory on %s; again with %s", job.name, device, memory)


def _attempt(
    job: Job, model: PlacedModel, folder: Path, preview: Preview | None
) -> Iterator[_Unwritten]:
    began = perf_counter()
    try:
        notes = dict[str, Any]()
        memory = model.placement.memory
        if memory != FASTEST:
            notes["memory"] = asdict(memory)
        if files := condition_files(job, model):
            notes["sources"] = files
        events = sample(
            job,
            model,
            folder=folder,
            notes=notes,
            decode_chunk=memory.decode_chunk,
            on_step=partial(preview.show, job) if preview else None,
        )
        with compiling_explained(model.placement.compiled):
            for event in events:
                if isinstance(event, StepInfo):
                    yield JobStep(job, event)
                else:
                    seconds = perf_counter() - began
                    timing.note(job, model.base.family, model.device, model.dtype, seconds)
                    yield _Finished(job, event, {**made_with(model), **notes})
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # as in _write
        yield _failed(job, error, folder)
    finally:
        if preview is not None:
            preview.over(job)
