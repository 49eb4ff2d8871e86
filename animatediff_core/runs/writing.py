"""One job's clip and sidecar onto the disk, both or neither."""

from pathlib import Path

import numpy as np

from ..checkpoints.base import BaseModel
from ..jobs import Job, dump_job
from ..media import free_path, release, write_clip, write_text
from .device import made_with


def write(job: Job, frames: np.ndarray, base: BaseModel, folder: Path) -> Path:
    """The clip and, beside it, the sidecar that makes it again."""
    path = free_path(folder, f"{job.name}-{job.seed}", f".{job.output.format}")
    whole = False
    try:
        output = job.output
        write_text(path.with_suffix(".yaml"), dump_job(job, made_with=made_with(base.unet)))
        write_clip(
            frames, path, format=output.format, fps=output.fps,
            crf=18 if output.crf is None else output.crf, comment=job.prompt[0],
        )  # fmt: skip
        whole = True
    finally:
        release(path)
        if not whole:
            path.with_suffix(".yaml").unlink(missing_ok=True)
    return path
