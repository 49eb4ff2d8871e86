"""Writes a job's clip, sidecar and contact sheet, all or none."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ClipError
from ..jobs import Job, Output, dump_job, output_name
from ..media.atomic import write_text
from ..media.clip import write_clip
from ..media.frames import Frames, ping_pong
from ..media.image import clip_contact_sheet, write_image
from ..media.interpolate import interpolated
from ..media.max_size import write_within
from ..media.names import free_path, release, remove
from ..media.settings import MARK
from .clip_checks import judge

log = logging.getLogger(__name__)


def write(job: Job, frames: Frames, made: dict[str, Any], folder: Path) -> Path:
    """The clip and, beside it, the sidecar that makes it again; returns the clip's path.

    `made` are settings of the sidecar besides the job's. A broken clip raises ClipError; it is
    written to a file named .failed, to look at.
    """
    verdict = judge(frames, job.frames)
    stem = output_name(job)
    if verdict.fault is not None:
        failed = _write(job, frames, made, folder, f"{stem}.failed")
        raise ClipError(
            f"{job.name}: {verdict.fault}; the model or its settings are broken; the clip is kept "
            f"as {failed}"
        )
    if verdict.doubt is not None:
        log.warning("%s: %s; is that what the prompt asks for?", job.name, verdict.doubt)
    return _write(job, frames, made, folder, stem)


def _write(job: Job, frames: Frames, made: dict[str, Any], folder: Path, stem: str) -> Path:
    suffix = job.output.suffix
    place = folder / stem
    path = free_path(place.parent, place.name, suffix)
    name = path.name.removesuffix(suffix)
    sidecar, sheet = path.with_name(f"{name}.yaml"), path.with_name(f"{name}.sheet.png")
    whole = False
    try:
        text = _encode(job, _shown(job.output, frames, path.parent), made, path)
        if job.output.sheet:
            write_image(clip_contact_sheet(frames), sheet)
        write_text(sidecar, text)
        whole = True
    finally:
        release(path, suffix)
        if not whole:
            for one in (path, sidecar, sheet):
                remove(one)
    return path


def _shown(output: Output, frames: Frames, folder: Path) -> Frames:
    """The frames as they are played; interpolated frames are in a file in `folder` meanwhile."""
    if output.ping_pong:
        frames = ping_pong(frames)
    if output.interpolate is None:
        return frames
    return interpolated(
        frames, output.fps, output.interpolate, loops=output.ping_pong, folder=folder
    )


def _encode(job: Job, shown: Frames, made: dict[str, Any], path: Path) -> str:
    """Write the clip alone; returns the settings that it carries, which the sidecar has too."""

    def settings(done: Mapping[str, Any]) -> str:
        fitted = {"fitted": dict(done)} if done else {}
        return MARK + dump_job(job, made_with={**made, **fitted})

    output, limit = job.output, job.output.max_size
    if limit is None:
        write_clip(shown, path, output, text=settings({}))
        return settings({})
    done = write_within(shown, path, output, limit, settings)
    if done:
        changes = ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in done.items())
        log.warning("%s: to stay below max_size %d bytes it has %s", job.name, limit, changes)
    return settings(done)
