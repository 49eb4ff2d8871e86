"""Animated WebP, lossless or of a given quality.

Pillow compresses each picture; the chunks around them are written here, one frame at a time.
Layout after RFC 9649, section 2.7.
"""

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from .encoding import Encoding
from .frames import Frames, changed_box, durations, size_of
from .settings import as_exif

_ANIMATION, _EXIF, _OVERWRITE = 0x02, 0x08, 0x02


def write_webp(frames: Frames, path: Path, encoding: Encoding, text: str) -> None:
    """Write an endlessly looping WebP that carries `text`."""
    width, height = size_of(frames)
    before: np.ndarray | None = None
    with path.open("wb") as file:
        file.write(b"RIFF\0\0\0\0WEBP")
        flags = _ANIMATION | (_EXIF if text else 0)
        head = struct.pack("<I", flags) + _whole(width - 1) + _whole(height - 1)
        file.write(_chunk(b"VP8X", head) + _chunk(b"ANIM", struct.pack("<IH", 0, 0)))
        for index, shown in enumerate(durations(len(frames), encoding.fps, unit=1000)):
            frame = frames[index]
            left, top, right, bottom = 0, 0, width, height
            if before is not None and encoding.quality is None:
                left, top, right, bottom = changed_box(before, frame)
                left, top = left - left % 2, top - top % 2  # places are stored halved
            place = _whole(left // 2) + _whole(top // 2)
            size = _whole(right - left - 1) + _whole(bottom - top - 1)
            data = _compressed(frame[top:bottom, left:right], encoding.quality)
            file.write(_chunk(b"ANMF", place + size + _whole(shown) + bytes([_OVERWRITE]) + data))
            before = frame
        if text:
            file.write(_chunk(b"EXIF", as_exif(text)))
        size_in_all = file.tell() - 8
        file.seek(4)
        file.write(struct.pack("<I", size_in_all))


def _whole(number: int) -> bytes:
    """A whole number in three bytes."""
    return number.to_bytes(3, "little")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def _compressed(frame: np.ndarray, quality: int | None) -> bytes:
    """The image chunk of a WebP, as Pillow compresses it."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame)).save(
        buffer, format="WEBP", lossless=quality is None, quality=80 if quality is None else quality
    )
    return buffer.getvalue()[12:]
