"""Can the clip be written as the job wants? Found by trying, before anything is loaded."""

from ..jobs import Job, Output
from ..media.clip import check_encoder
from ..media.encoding import Encoding
from ..media.interpolate import check_interpolation


def check_output(job: Job) -> None:
    """MediaError where the clip cannot be written as the job wants, found by trying."""
    scale = 1.0 if job.upscale is None else job.upscale.scale
    width, height = round(job.width * scale), round(job.height * scale)
    check_encoder(encoding_of(job.output), width, height)
    if job.output.interpolate is not None:
        check_interpolation(width, height, job.frames)


def encoding_of(output: Output) -> Encoding:
    """How the encoders are told."""
    return Encoding(
        format=output.format,
        fps=output.interpolate or output.fps,
        codec=output.codec,
        crf=output.crf,
        quality=output.quality,
        dither=output.dither,
    )
