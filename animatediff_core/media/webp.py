"""Animated WebP writer, lossless or of a given quality, exact timing.

Pillow compresses each frame. The chunks around them are written here (RFC 9649, section 2.7),
because Pillow keeps all frames in memory and joins equal ones.
"""

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from ..jobs import Encoding
from .frames import Frames, changes, durations, size_of
from .settings import as_exif

_ANIMATION, _EXIF, _OVERWRITE = 0x02, 0x08, 0x02


def write_webp(frames: Frames, path: Path, encoding: Encoding, text: str) -> None:
    """Write a WebP that carries `text`."""
    width, height = size_of(frames)
    shown = durations(len(frames), encoding.shown_fps, unit=1000)
    images = (frames[i] for i in range(len(frames)))
    with path.open("wb") as file:
        file.write(b"RIFF\0\0\0\0WEBP")
        flags = _ANIMATION | (_EXIF if text else 0)
        head = struct.pack("<I", flags) + _uint24(width - 1) + _uint24(height - 1)
        file.write(_chunk(b"VP8X", head) + _chunk(b"ANIM", struct.pack("<IH", 0, encoding.loop)))
        for duration, (_, frame, (left, top, right, bottom)) in zip(
            shown, changes(images), strict=True
        ):
            if encoding.quality is not None:  # loss differs from frame to frame everywhere
                left, top, right, bottom = 0, 0, width, height
            left, top = left - left % 2, top - top % 2  # stored halved
            region = (left // 2, top // 2, right - left - 1, bottom - top - 1, duration)
            data = _compressed(frame[top:bottom, left:right], encoding.quality)
            head = b"".join(map(_uint24, region)) + bytes([_OVERWRITE])
            file.write(_chunk(b"ANMF", head + data))
        if text:
            file.write(_chunk(b"EXIF", as_exif(text)))
        size = file.tell() - 8
        file.seek(4)
        file.write(struct.pack("<I", size))


def _uint24(number: int) -> bytes:
    return number.to_bytes(3, "little")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def _compressed(frame: np.ndarray, quality: int | None) -> bytes:
    """Image chunk of a WebP by Pillow."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame)).save(
        buffer, format="WEBP", lossless=quality is None, quality=80 if quality is None else quality
    )
    return buffer.getvalue()[12:]
