"""The use case `generate`: jobs in, clips out, one result a job, models loaded once."""

import gc
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import AnimateDiffError, SurroundingsError
from ..jobs import Job
from ..media.frames import Frames
from ..planning.jobs import Planned, plan
from ..planning.models import ModelSpec
from ..sampling.conditions import ConditionModels
from ..sampling.device import choose, made_with
from ..sampling.loading import load_model
from ..sampling.output import write
from ..sampling.placement import PlacedModel, Placement, check_compiling
from ..sampling.provenance import condition_files
from ..sampling.sample import Step, sample
from ..speed.compiling import compiling_explained
from ..speed.memory import PLENTY, Thrift, described, ladder

log = logging.getLogger(__name__)


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
    frames: Frames | None
    """f h w 3 uint8."""
    error: AnimateDiffError | None


@dataclass(frozen=True)
class _Finished:
    """One job's frames are there, to be written."""

    job: Job
    frames: Frames
    made: dict[str, Any]
    """What the sidecar says that they were made with."""


def generate(
    jobs: Sequence[Job],
    *,
    output_dir: str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> Iterator[Result]:
    """Make the clips of all jobs; one failing job does not end the others.

    While a clip is written the next one is begun; results come in the order of their clips.
    Raises before anything runs where a job cannot work (see `plan`).
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
) -> Iterator[Loading | Step | Result]:
    """As `generate`, with the progress in between; `low_vram` starts where memory is least,
    `compiled` has torch.compile make the UNet's blocks."""
    where, thrift = check_machine(device, dtype, low_vram=low_vram, compiled=compiled)
    planned = plan(jobs, offline=offline)
    folder = Path(output_dir or "outputs")
    groups: dict[tuple[ModelSpec, torch.dtype], list[Planned]] = {}
    for one in planned:
        kind = choose(device, dtype, fast=one.job.fast > 0)[1]
        groups.setdefault((one.found.spec, kind), []).append(one)
    events = (
        event
        for (_, kind), members in groups.items()
        for event in _run_group(members, folder, Placement(where, kind, thrift, compiled), offline)
    )
    yield from _written_behind(events, folder)


def check_machine(
    device: str | None, dtype: str | None, *, low_vram: bool, compiled: bool
) -> tuple[torch.device, Thrift]:
    """Where a run takes place and how lean it begins; raises where this machine cannot."""
    where, _ = choose(device, dtype)
    thrift = ladder(where)[-1] if low_vram else PLENTY
    if compiled:
        check_compiling(where, thrift)
    return where, thrift


def _written_behind(
    events: Iterator[Loading | Step | _Finished | Result], folder: Path
) -> Iterator[Loading | Step | Result]:
    """Finished clips are written in a thread, one at a time, while the next one is made.

    An interruption lets the clip in work be written to its end, and told.
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
                    writing = thread.submit(_written, event, folder)
                else:
                    yield event
            if writing is not None:
                done, writing = writing.result(), None
                yield done
        except (KeyboardInterrupt, SystemExit):  # Ctrl-C, or ended by the system
            if writing is not None:
                yield writing.result()
            raise


def _written(clip: _Finished, folder: Path) -> Result:
    """Its result once it lies on the disk, or why it does not."""
    job = clip.job
    try:
        return Result(job, write(job, clip.frames, clip.made, folder), clip.frames, None)
    except AnimateDiffError as error:
        return _failed(job, error)
    except OSError as error:
        return _failed(job, _unwritable(folder, error))
    except MemoryError:
        message = f"{job.name}: not enough memory to write it; lower the size or the frames"
        return Result(job, None, None, SurroundingsError(message))


def _failed(job: Job, error: AnimateDiffError) -> Result:
    """Its result, without the trace of what went wrong, which holds the model."""
    cause: BaseException | None = error
    while cause is not None:
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__
    return Result(job, None, None, error)


def _unwritable(folder: Path, error: OSError) -> SurroundingsError:
    return SurroundingsError(
        f"{folder}: cannot be written to ({error.strerror or error}); choose another folder"
    )


def _run_group(
    members: Sequence[Planned], folder: Path, placing: Placement, offline: bool
) -> Iterator[Loading | Step | _Finished | Result]:
    """All jobs of one model, which is loaded for them and gone before the next one comes."""
    found = members[0].found
    yield Loading(found.spec.base, len(members))
    gc.collect()  # what is left of the last one, whole or not, is a cycle
    try:
        placed = PlacedModel(*load_model(found, dtype=placing.dtype, offline=offline), placing)
    except AnimateDiffError as error:
        yield from (_failed(one.job, error) for one in members)
        return
    except (torch.OutOfMemoryError, MemoryError):
        message = f"{found.spec.base}: not enough memory on {placing.device} to load it"
        full = SurroundingsError(message)
        yield from (Result(one.job, None, None, full) for one in members)
        return
    models = ConditionModels(
        base=placed.base, device=placing.device, dtype=placing.dtype, offline=offline
    )
    for one in members:
        yield from _run_job(one.job, placed, folder, models)


def _run_job(
    job: Job, placed: PlacedModel, folder: Path, models: ConditionModels
) -> Iterator[Step | _Finished | Result]:
    """One job, again and again with less memory while there is a leaner way."""
    while True:
        try:
            yield from _attempt(job, placed, folder, models)
            return
        except (torch.OutOfMemoryError, MemoryError):
            pass  # what the error's frames hold must go before the next attempt
        if not placed.go_leaner():
            device = placed.placing.device
            message = f"{job.name}: not enough memory on {device}; lower the size or the frames"
            yield Result(job, None, None, SurroundingsError(message))
            return
        log.warning("%s: not enough memory on %s; again with %s", job.name,
                    placed.placing.device, described(placed.placing.thrift))  # fmt: skip


def _attempt(
    job: Job, placed: PlacedModel, folder: Path, models: ConditionModels
) -> Iterator[Step | _Finished | Result]:
    try:
        notes = dict[str, Any]()
        thrift = placed.placing.thrift
        if thrift != PLENTY:
            notes["memory"] = asdict(thrift)
        if led_by := condition_files(job, models):
            notes["sources"] = led_by
        events = sample(
            job, placed.base, placed.animated, folder=folder, notes=notes, models=models,
            decode_chunk=thrift.decode_chunk,
        )  # fmt: skip
        with compiling_explained(placed.placing.compiled):
            for event in events:
                if isinstance(event, Step):
                    yield event
                else:
                    yield _Finished(job, event, {**made_with(placed.base.unet), **notes})
    except AnimateDiffError as error:
        yield _failed(job, error)
    except OSError as error:
        yield _failed(job, _unwritable(folder, error))
