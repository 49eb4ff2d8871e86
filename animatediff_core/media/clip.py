"""Clips to files of every format, and whether a format can be written here at all."""

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from PIL import features

from ..errors import MediaError
from .apng import write_apng
from .atomic import replacing, replacing_folder
from .encoding import Encoding
from .frames import Frames, size_of
from .gif import write_gif
from .movie import write_movie
from .stills import write_frames
from .webp import write_webp

FORMATS = ("gif", "mp4", "webm", "webp", "apng", "png")


def write_clip(frames: Frames, path: Path, encoding: Encoding, *, text: str = "") -> None:
    """Write a clip, whole or not at all; frames are read one at a time. The file carries `text`.

    `path` is a folder where the format is png. Raises MediaError where the encoder refuses,
    SurroundingsError where the disk does.
    """
    check_size(encoding.format, *size_of(frames))
    if encoding.format == "png":
        with replacing_folder(path) as beside:
            write_frames(frames, beside, text)
        return
    with replacing(path) as beside:
        encode(frames, beside, encoding, text)


def encode(frames: Frames, path: Path, encoding: Encoding, text: str) -> None:
    """Write a file of any format but png, where it stands."""
    if encoding.format == "gif":
        write_gif(frames, path, encoding, text)
    elif encoding.format == "webp":
        write_webp(frames, path, encoding, text)
    elif encoding.format == "apng":
        write_apng(frames, path, encoding, text)
    elif encoding.format in ("mp4", "webm"):
        write_movie(frames, path, encoding, text)
    else:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {encoding.format!r}")


def check_size(format: str, width: int, height: int) -> None:
    """MediaError where a format cannot hold pictures of this size."""
    if format in ("mp4", "webm") and (width % 2 or height % 2):
        raise MediaError(
            f"{format} needs an even width and height, got {width} x {height}; change the size or "
            "write a gif"
        )
    most = {"gif": 65535, "webp": 16383}.get(format)
    if most is not None and max(width, height) > most:
        raise MediaError(
            f"{format} holds {most} pixels a side at most, got {width} x {height}; write an mp4"
        )


@cache
def check_encoder(encoding: Encoding, width: int, height: int) -> None:
    """Encode two frames of noise: MediaError in one sentence where that cannot work."""
    check_size(encoding.format, width, height)
    if encoding.format == "gif" and 100 / encoding.fps > 65535:
        raise MediaError(f"gif shows a frame for 655 seconds at most; fps {encoding.fps:g} is less")
    if encoding.format == "webp" and not features.check("webp"):
        raise MediaError("this Pillow was built without webp; write gif, apng, png, mp4 or webm")
    if encoding.format in ("mp4", "webm"):
        noise = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
        with tempfile.TemporaryDirectory(prefix="animatediff-") as scratch:
            write_clip(noise, Path(scratch) / f"trial.{encoding.format}", encoding)
