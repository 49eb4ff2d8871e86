"""Clip writer for every format, and the check that a format can be written here."""

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from PIL import features

from ..errors import MediaError
from ..jobs import Encoding
from .apng import write_apng
from .atomic import atomic_folder, atomic_write
from .ffmpeg import write_video
from .frames import Frames, size_of
from .gif import write_gif
from .image import write_frames
from .webp import write_webp


def write_clip(frames: Frames, path: Path, encoding: Encoding, *, text: str = "") -> None:
    """Write a clip that carries `text`; frames are read one at a time.

    `path` is a folder for format png. Raises MediaError if the encoder fails, MachineError
    if the disk does.
    """
    check_size(encoding.format, *size_of(frames))
    if encoding.format == "png":
        with atomic_folder(path) as folder:
            write_frames(frames, folder, text)
        return
    with atomic_write(path) as temporary:
        encode(frames, temporary, encoding, text)


def encode(
    frames: Frames, path: Path, encoding: Encoding, text: str, colours: int | None = None
) -> None:
    """Write a file of any format but png, not atomically.

    `colours` of the palette: gif 2 to 255, default 255; apng 2 to 256, default no palette.
    """
    if encoding.format == "gif":
        write_gif(frames, path, encoding, text, colours or 255)
    elif encoding.format == "apng":
        write_apng(frames, path, encoding, text, colours)
    elif encoding.format == "webp":
        write_webp(frames, path, encoding, text)
    else:
        write_video(frames, path, encoding, text)


def check_size(format: str, width: int, height: int) -> None:
    """MediaError if a format does not support this size."""
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
    """MediaError if two frames of noise cannot be encoded."""
    check_size(encoding.format, width, height)
    if encoding.format == "gif" and 100 / encoding.shown_fps > 65535:
        raise MediaError(
            f"gif shows a frame for 655 seconds at most; fps {encoding.shown_fps:g} is less"
        )
    if encoding.format == "webp" and not features.check("webp"):
        raise MediaError("this Pillow was built without webp; write gif, apng, png, mp4 or webm")
    if encoding.format in ("mp4", "webm"):
        noise = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
        with tempfile.TemporaryDirectory(prefix="animatediff-") as folder:
            write_clip(noise, Path(folder) / f"trial.{encoding.format}", encoding)
