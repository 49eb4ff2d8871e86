"""Seconds of clips on this machine, which later plans tell.

One JSON file in the user's cache; without it, or if it cannot be written, plans tell no time.
"""

import json
from contextlib import suppress
from pathlib import Path

import torch

from ..errors import MachineError
from ..jobs import Job
from ..media.atomic import user_cache, write_text

_KEPT = 1000
"""Kinds of clips that are remembered."""


def note(job: Job, family: str, device: torch.device, dtype: torch.dtype, seconds: float) -> None:
    """Remember how long a clip took."""
    times = _read()
    key = _key(job, family, device, dtype)
    times.pop(key, None)
    times[key] = seconds / job.steps
    kept = dict(list(times.items())[-_KEPT:])
    with suppress(MachineError, OSError, RuntimeError):  # the last: a user without a home
        write_text(_path(), json.dumps(kept, indent=0))


def seconds_of(job: Job, family: str, device: torch.device, dtype: torch.dtype) -> float | None:
    """Seconds that a clip of this kind took here, for the job's steps; None if none was made."""
    per_step = _read().get(_key(job, family, device, dtype))
    return None if per_step is None else per_step * job.steps


def _path() -> Path:
    return user_cache() / "times.json"


def _read() -> dict[str, float]:
    try:
        times = json.loads(_path().read_text("utf-8"))
    except (OSError, ValueError, RuntimeError):
        return {}
    whole = isinstance(times, dict) and all(isinstance(one, float) for one in times.values())
    return times if whole else {}


def _key(job: Job, family: str, device: torch.device, dtype: torch.dtype) -> str:
    """The settings that a clip's time depends on, besides its steps."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = torch.get_num_threads() if device.type == "cpu" else 0
    length = job.window.length if job.window else job.frames
    width, height = job.final_size
    passes = (job.free_init is not None, job.upscale is not None, job.guidance_scale > 1, job.fast)
    controls = len(job.controlnets) + len(job.sparse_controls) + len(job.regions)
    parts = (name, threads, dtype, family, job.frames, length, width, height, *passes, controls)
    return " ".join(map(str, parts))
