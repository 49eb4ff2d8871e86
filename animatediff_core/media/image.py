"""Single images, contact sheets, and clips as folders of numbered PNG frames."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from PIL import Image, PngImagePlugin

from .atomic import atomic_write
from .frames import Frames, Picked
from .opening import open_image, reading_image
from .rgb import DEEP, Span, joint_span, span_of, to_rgb, upright
from .settings import PNG_KEY

_COLUMNS, _MAX_ROWS = 8, 8
_ANIMATED = ("GIF", "PNG", "WEBP", "TIFF")
_DURATION = 100
"""Milliseconds of a frame without a duration, as browsers show it."""
Place = tuple[Path, int]
"""An image file, and the number of a frame in it."""


def read_image(path: Path) -> np.ndarray:
    """One image, the first of the file: h w 3 uint8."""
    return next(read_stills([(path, 0)]))


def read_stills(places: Sequence[Place], *, mask: bool = False) -> Iterator[np.ndarray]:
    """Images, h w 3 uint8 each; all of them are scaled by `span_of_stills`."""
    span = span_of_stills(places)
    for (path, _), image in zip(places, _loaded(places), strict=True):
        with reading_image(path):
            ready = upright(image)
        yield to_rgb(ready, span, mask=mask)


def span_of_stills(places: Sequence[Place]) -> Span | None:
    """The values that become black and white; None if all images have 8 bits a channel."""
    deep = []
    for path, number in places:
        with open_image(path) as image:
            if image.mode in DEEP:
                deep.append((path, number))
    return joint_span(span_of(image) for image in _loaded(deep))


def still_times(path: Path) -> list[float]:
    """When each frame of an image file appears, in milliseconds; most files have one frame."""
    with open_image(path) as image, reading_image(path):
        count = getattr(image, "n_frames", 1) if image.format in _ANIMATED else 1
    if count == 1:
        return [0.0]
    frames = _loaded([(path, number) for number in range(count)])
    lengths = [float(image.info.get("duration") or _DURATION) for image in frames]
    return list(np.cumsum([0.0, *lengths[:-1]]))


def _loaded(places: Sequence[Place]) -> Iterator[Image.Image]:
    """Each decoded image, which the next one replaces."""
    for path, frames in groupby(places, key=itemgetter(0)):
        with open_image(path) as image:
            for _, number in frames:
                with reading_image(path):
                    image.seek(number)
                    image.load()
                yield image


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
