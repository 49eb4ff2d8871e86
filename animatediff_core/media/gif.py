"""GIF: one palette for the clip, only what changes from frame to frame, exact timing.

Pillow compresses each picture; the blocks around them are written here, one frame at a time.
Layout after the specification GIF89a (1990).
"""

import io
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from .encoding import Encoding
from .frames import Frames, changed_box, durations, size_of
from .palette import Quantizer, make_palette


def write_gif(frames: Frames, path: Path, encoding: Encoding, text: str) -> None:
    """Write an endlessly looping GIF with `text` as its comment."""
    palette = make_palette(frames, encoding.colours or 255)  # one is left for "as before"
    quantizer = Quantizer(palette, encoding.dither)
    clear = len(palette)
    before: np.ndarray | None = None
    with path.open("wb") as file:
        _write_head(file, size_of(frames), palette, text)
        for index, delay in enumerate(durations(len(frames), encoding.fps)):
            after = quantizer.indices(frames[index])
            if before is None:
                box, shown = (0, 0, after.shape[1], after.shape[0]), after
            else:
                box = changed_box(before, after)
                shown = np.where(after == before, clear, after).astype(np.uint8)
            _write_frame(file, shown, box, delay, clear)
            before = after
        file.write(b"\x3b")


def _write_head(file: BinaryIO, size: tuple[int, int], palette: np.ndarray, text: str) -> None:
    bits = max(1, len(palette).bit_length())  # room for one colour more
    file.write(b"GIF89a" + struct.pack("<HHBBB", *size, 0xF0 | bits - 1, 0, 0))
    file.write(palette.tobytes().ljust(3 << bits, b"\0"))
    file.write(b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00")
    if text:
        file.write(b"\x21\xfe")
        content = text.encode()
        for start in range(0, len(content), 255):
            part = content[start : start + 255]
            file.write(bytes([len(part)]) + part)
        file.write(b"\0")


def _write_frame(
    file: BinaryIO, indices: np.ndarray, box: tuple[int, int, int, int], delay: int, clear: int
) -> None:
    """One picture for `delay` hundredths; pixels of index `clear` stay as they were."""
    left, top, right, bottom = box
    file.write(b"\x21\xf9\x04" + struct.pack("<BHBB", 1 << 2 | 1, delay, clear, 0))
    file.write(b"\x2c" + struct.pack("<HHHHB", left, top, right - left, bottom - top, 0))
    file.write(_compressed(np.ascontiguousarray(indices[top:bottom, left:right])))


def _compressed(indices: np.ndarray) -> bytes:
    """The image data of a GIF: code size and sub-blocks, as Pillow compresses them."""
    buffer = io.BytesIO()
    picture = Image.fromarray(indices).convert("P")
    picture.save(buffer, format="GIF", optimize=False, interlace=0)
    content = buffer.getvalue()
    place = 13 + (3 << (content[10] & 7) + 1)  # past head and palette
    while content[place] == 0x21:  # an extension: label, then sub-blocks up to an empty one
        place += 2
        while content[place]:
            place += content[place] + 1
        place += 1
    assert content[place] == 0x2C
    assert not content[place + 9] & 0x80
    return content[place + 10 : -1]
