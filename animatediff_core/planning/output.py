"""The check that a clip can be written as its job wants, before anything is loaded."""

from ..jobs import Job
from ..media.clip import check_encoder
from ..media.interpolate import check_interpolation


def check_output(job: Job) -> None:
    """MediaError if the clip cannot be written as the job wants, found by trying."""
    scale = 1.0 if job.upscale is None else job.upscale.scale
    width, height = round(job.width * scale), round(job.height * scale)
    check_encoder(job.output, width, height)
    if job.output.interpolate is not None:
        check_interpolation(width, height, job.frames)
