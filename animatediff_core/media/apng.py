"""APNG writer: lossless or in a palette, changed pixels only, exact timing.

Pillow compresses each frame. The chunks around them are written here (PNG specification, third
edition, sections 4.9 and 11.3.6), because Pillow keeps all frames in memory and joins equal ones.
"""

import io
import struct
import zlib
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from ..jobs import Encoding
from .frames import Frames, changes, size_of
from .palette import Quantizer, make_palette
from .settings import PNG_KEY

_START = b"\x89PNG\r\n\x1a\n"


def write_apng(
    frames: Frames, path: Path, encoding: Encoding, text: str, colours: int | None
) -> None:
    """Write an APNG that carries `text`; `colours`: 2 to 256, or lossless."""
    width, height = size_of(frames)
    delay = (1 / Fraction(encoding.shown_fps)).limit_denominator(65535)
    timing = struct.pack(">HHBB", delay.numerator, delay.denominator, 0, 0)
    images: Iterable[np.ndarray] = (frames[i] for i in range(len(frames)))
    palette = None
    if colours is not None:
        palette = make_palette(frames, colours)
        images = map(Quantizer(palette, encoding.dither).indices, images)
    number = 0  # of fcTL and fdAT chunks together
    with path.open("wb") as file:
        file.write(_START)
        color_type = 2 if palette is None else 3  # RGB, or palette indices
        header = struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0)
        _write_chunk(file, b"IHDR", header)
        _write_chunk(file, b"acTL", struct.pack(">II", len(frames), encoding.loop))
        if text:
            # compressed, because ffmpeg takes an APNG with much text before its image for a PNG
            packed = PNG_KEY.encode() + b"\0\1\0\0\0" + zlib.compress(text.encode())
            _write_chunk(file, b"iTXt", packed)
        if palette is not None:
            _write_chunk(file, b"PLTE", palette.tobytes())
        for previous, frame, (left, top, right, bottom) in changes(images):
            region = struct.pack(">IIIII", number, right - left, bottom - top, left, top)
            _write_chunk(file, b"fcTL", region + timing)
            number += 1
            data = _compressed(frame[top:bottom, left:right])
            if previous is None:
                _write_chunk(file, b"IDAT", data)
            else:
                _write_chunk(file, b"fdAT", struct.pack(">I", number) + data)
                number += 1
        _write_chunk(file, b"IEND", b"")


def _write_chunk(file: BinaryIO, kind: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + kind + data)
    file.write(struct.pack(">I", zlib.crc32(kind + data)))


def _compressed(frame: np.ndarray) -> bytes:
    """Image data of a PNG by Pillow, of colours h w 3 or indices h w."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame)).save(buffer, format="PNG")
    content, position, data = buffer.getvalue(), len(_START), b""
    while position < len(content):
        size = int.from_bytes(content[position : position + 4], "big")
        if content[position + 4 : position + 8] == b"IDAT":
            data += content[position + 8 : position + 8 + size]
        position += size + 12
    return data
