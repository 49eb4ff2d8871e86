"""Checks that clips can be written, before anything is loaded."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..errors import AnimateDiffError, MachineError
from ..jobs import Job
from ..media.clip import check_encoder
from ..media.interpolate import check_interpolation

_BYTES_PER_PIXEL = {"gif": 0.5, "webp": 0.5, "apng": 2.0, "png": 2.0, "mp4": 0.1, "webm": 0.1}
"""Size of a clip's file for each pixel of each frame, at the upper end of what clips take."""


def check_output(job: Job) -> None:
    """MediaError if the clip cannot be written as the job wants, found by trying."""
    width, height = job.final_size
    check_encoder(job.output, width, height)
    if job.output.interpolate is not None:
        check_interpolation(width, height, job.frames)


def check_folder(folder: Path, jobs: Sequence[Job]) -> None:
    """Raise if the clips of a run cannot be written to a folder, which may be new."""
    existing = next(p for p in (folder, *folder.absolute().parents) if os.path.exists(p))
    if not existing.is_dir():
        raise AnimateDiffError(f"{existing}: is a file; choose another output folder with -o")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise MachineError(
            f"{existing}: no permission to write there; grant it, or choose another folder with -o"
        )
    wanted, free = sum(map(_num_bytes, jobs)), shutil.disk_usage(existing).free
    if wanted > free:
        raise MachineError(
            f"{existing}: {wanted / 1e9:.1f} GB are needed for {len(jobs)} clips and "
            f"{free / 1e9:.1f} GB are free; free some space, or choose another folder with -o"
        )


def _num_bytes(job: Job) -> float:
    """An estimate of the clip's file."""
    width, height = job.final_size
    frames = job.frames * job.output.shown_fps / job.output.fps * (1 + job.output.ping_pong)
    return _BYTES_PER_PIXEL[job.output.format] * frames * width * height
