"""Single images, contact sheets, and clips as folders of numbered PNG frames."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from ..errors import MediaError
from .atomic import atomic_write
from .frames import Frames, Picked
from .settings import PNG_KEY

_COLUMNS, _MAX_ROWS = 8, 8


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image file; MediaError if it is missing or cannot be read, also within the block."""
    if not path.is_file():
        raise MediaError(f"{path}: no such image; check the path")
    try:
        with Image.open(path) as image:
            yield image
    except (UnidentifiedImageError, OSError, EOFError) as error:
        raise MediaError(f"{path}: is not a readable image; repair or remove it") from error


def read_image(path: Path) -> np.ndarray:
    """One image: h w 3 uint8."""
    with open_image(path) as image:
        return np.asarray(image.convert("RGB"))


def write_image(image: np.ndarray, path: Path) -> None:
    """Write one image, h w 3 uint8, in the format of the path's suffix."""
    with atomic_write(path) as temporary:
        iio.imwrite(temporary, image, plugin="pillow")


def write_frames(frames: Frames, folder: Path, text: str) -> None:
    """Write every frame as 00000.png, 00001.png, ... into a folder; the first carries `text`."""
    for index in range(len(frames)):
        info = PngImagePlugin.PngInfo()
        if text and index == 0:
            info.add_itxt(PNG_KEY, text)
        image = Image.fromarray(np.ascontiguousarray(frames[index]))
        image.save(folder / f"{index:05d}.png", pnginfo=info)


def contact_sheet(clips: Sequence[Frames], *, columns: int = _COLUMNS, gap: int = 2) -> np.ndarray:
    """One row for each clip, `columns` of its frames evenly spaced: h w 3 uint8, white between."""
    rows = []
    for clip in clips:
        picks = _evenly(len(clip), columns)
        tiles = [np.pad(clip[i], ((0, gap), (0, gap), (0, 0)), constant_values=255) for i in picks]
        rows.append(np.concatenate(tiles, axis=1))
    width = max(row.shape[1] for row in rows)
    padded = [
        np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255)
        for row in rows
    ]
    return np.concatenate(padded)


def clip_contact_sheet(frames: Frames) -> np.ndarray:
    """One clip's frames in reading order, 8 a row, evenly spaced if there are more than 64."""
    picks = _evenly(len(frames), _COLUMNS * _MAX_ROWS)
    starts = range(0, len(picks), _COLUMNS)
    return contact_sheet([Picked(frames, picks[i : i + _COLUMNS]) for i in starts])


def _evenly(count: int, most: int) -> list[int]:
    """At most `most` numbers below `count`, evenly spaced."""
    return [int(i) for i in np.linspace(0, count - 1, min(most, count)).round()]
