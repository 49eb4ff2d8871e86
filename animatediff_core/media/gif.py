"""GIF writer: one palette for the clip, changed pixels only, exact timing.

Pillow compresses each frame. The blocks around them are written here (GIF89a specification),
because Pillow keeps all frames in memory and joins equal ones.
"""

import io
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from ..jobs import Encoding
from .frames import Box, Frames, changes, durations, size_of
from .palette import Quantizer, make_palette


def write_gif(frames: Frames, path: Path, encoding: Encoding, text: str, colours: int) -> None:
    """Write a GIF with `text` as its comment; `colours`: 2 to 255."""
    palette = make_palette(frames, colours)  # the 256th index means "unchanged"
    quantizer = Quantizer(palette, encoding.dither)
    unchanged = len(palette)
    delays = durations(len(frames), encoding.shown_fps)
    indices = (quantizer.indices(frames[i]) for i in range(len(frames)))
    with path.open("wb") as file:
        _write_head(file, size_of(frames), palette, text, encoding.loop)
        for delay, (previous, frame, box) in zip(delays, changes(indices), strict=True):
            if previous is not None:
                frame = np.where(frame == previous, unchanged, frame).astype(np.uint8)
            _write_frame(file, frame, box, delay, unchanged)
        file.write(b"\x3b")


def _write_head(
    file: BinaryIO, size: tuple[int, int], palette: np.ndarray, text: str, plays: int
) -> None:
    bits = max(1, len(palette).bit_length())  # of one colour more
    file.write(b"GIF89a" + struct.pack("<HHBBB", *size, 0xF0 | bits - 1, 0, 0))
    file.write(palette.tobytes().ljust(3 << bits, b"\0"))
    if plays != 1:  # the number of repetitions; a file without it plays once
        file.write(b"\x21\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<HB", max(plays - 1, 0), 0))
    if text:
        file.write(b"\x21\xfe")
        content = text.encode()
        for start in range(0, len(content), 255):
            block = content[start : start + 255]
            file.write(bytes([len(block)]) + block)
        file.write(b"\0")


def _write_frame(
    file: BinaryIO, indices: np.ndarray, box: Box, delay: int, transparent: int
) -> None:
    """One frame for `delay` hundredths of a second, h w palette indices."""
    left, top, right, bottom = box
    file.write(b"\x21\xf9\x04" + struct.pack("<BHBB", 1 << 2 | 1, delay, transparent, 0))
    file.write(b"\x2c" + struct.pack("<HHHHB", left, top, right - left, bottom - top, 0))
    file.write(_compressed(np.ascontiguousarray(indices[top:bottom, left:right])))


def _compressed(indices: np.ndarray) -> bytes:
    """The image data of a GIF: code size and sub-blocks, as Pillow compresses them."""
    buffer = io.BytesIO()
    Image.fromarray(indices).convert("P").save(buffer, format="GIF", optimize=False, interlace=0)
    content = buffer.getvalue()
    position = 13 + (3 << (content[10] & 7) + 1)  # after head and palette
    while content[position] == 0x21:  # an extension: label, then sub-blocks up to an empty one
        position += 2
        while content[position]:
            position += content[position] + 1
        position += 1
    assert content[position] == 0x2C
    assert not content[position + 9] & 0x80
    return content[position + 10 : -1]
