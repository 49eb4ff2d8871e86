"""APNG: lossless or in a palette, and only what changes from frame to frame.

Pillow compresses each picture; the chunks around them are written here, one frame at a time.
Layout after the PNG specification, third edition, sections 4.9 and 11.3.6.
"""

import io
import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from .encoding import Encoding
from .frames import Frames, changed_box, size_of
from .palette import Quantizer, make_palette
from .settings import PNG_KEY

_START = b"\x89PNG\r\n\x1a\n"


def write_apng(frames: Frames, path: Path, encoding: Encoding, text: str) -> None:
    """Write an endlessly looping APNG that carries `text`."""
    width, height = size_of(frames)
    delay = (1 / Fraction(encoding.fps)).limit_denominator(65535)
    timing = struct.pack(">HHBB", delay.numerator, delay.denominator, 0, 0)
    palette = None if encoding.colours is None else make_palette(frames, encoding.colours)
    quantizer = None if palette is None else Quantizer(palette, encoding.dither)
    number = 0  # of fcTL and fdAT chunks together
    before: np.ndarray | None = None
    with path.open("wb") as file:
        file.write(_START)
        kind = 2 if palette is None else 3  # true colour, or indices
        _write_chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
        _write_chunk(file, b"acTL", struct.pack(">II", len(frames), 0))
        if text:
            # compressed, as ffmpeg takes an APNG for a PNG where much stands before the picture
            packed = PNG_KEY.encode() + b"\0\1\0\0\0" + zlib.compress(text.encode())
            _write_chunk(file, b"iTXt", packed)
        if palette is not None:
            _write_chunk(file, b"PLTE", palette.tobytes())
        for index in range(len(frames)):
            frame = frames[index] if quantizer is None else quantizer.indices(frames[index])
            box = (0, 0, width, height) if before is None else changed_box(before, frame)
            left, top, right, bottom = box
            place = struct.pack(">IIIII", number, right - left, bottom - top, left, top)
            _write_chunk(file, b"fcTL", place + timing)
            number += 1
            data = _compressed(frame[top:bottom, left:right])
            if index == 0:
                _write_chunk(file, b"IDAT", data)
            else:
                _write_chunk(file, b"fdAT", struct.pack(">I", number) + data)
                number += 1
            before = frame
        _write_chunk(file, b"IEND", b"")


def _write_chunk(file: BinaryIO, kind: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + kind + data)
    file.write(struct.pack(">I", zlib.crc32(kind + data)))


def _compressed(frame: np.ndarray) -> bytes:
    """The image data of a PNG, as Pillow compresses it: of colours h w 3 or indices h w."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame)).save(buffer, format="PNG")
    content, place, data = buffer.getvalue(), len(_START), b""
    while place < len(content):
        size = int.from_bytes(content[place : place + 4], "big")
        if content[place + 4 : place + 8] == b"IDAT":
            data += content[place + 8 : place + 8 + size]
        place += size + 12
    return data
