"""Images for the frames of a clip: from a video, a folder or a single file, fitted to size.

Files of a folder are ordered by name, numbers in a name by value (2 before 10).
Images are h w 3 uint8 RGB; several are f h w 3.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os.path import isdir
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import MediaError
from ..jobs.choices import Fit
from .frames import by_time
from .image import Place, read_stills, span_of_stills, still_times
from .opening import is_hidden, is_image
from .video import open_video

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageSource:
    """Which images a clip takes from a path."""

    path: Path
    """A video, a folder of images, or one image, which is repeated for all frames."""
    numbers: tuple[int, ...]
    """For each frame of the clip, the number of its image, from 0."""
    size: tuple[int, int]
    """Width and height of the clip in pixels."""
    fit: Fit = "exact"
    """exact: images must have the clip's size; crop: scaled to cover it, then cropped to the
    middle; stretch: resized to it."""
    mask: bool = False
    """Transparent parts are black, and a mask of one colour is its alpha channel."""


def check_images(source: ImageSource) -> None:
    """Read the images; MediaError if they are missing, too few, damaged or of the wrong size.

    A range of values that is scaled and a gap in a folder's numbers are reported as warnings.
    """
    read_images(source)
    if _is_film(source.path):
        return
    if (span := span_of_stills(list(_places(source).values()))) is not None:
        message = "%s: grey values from %g to %g are read as 0 to 255"
        log.warning(message, source.path, *span)
    if isdir(source.path) and (gap := _gap(_files(source.path))):
        log.warning("%s: numbers are missing after %s; images are used in order", source.path, gap)


def read_images(source: ImageSource) -> np.ndarray:
    """The images, fitted: f h w 3 uint8."""
    fitted = {}
    numbers = sorted(set(source.numbers))
    for number, (path, image) in zip(numbers, _images(source), strict=True):
        _check_size(source, (image.shape[1], image.shape[0]), path)
        fitted[number] = fit_image(image, source.size, source.fit)
    return np.stack([fitted[number] for number in source.numbers])


def fit_image(image: np.ndarray, size: tuple[int, int], fit: Fit) -> np.ndarray:
    """An image, h w 3 uint8, resized to a width and height in pixels."""
    height, width = image.shape[:2]
    if (width, height) == size:
        return image
    box = None
    if fit == "crop":
        scale = max(size[0] / width, size[1] / height)
        crop_width, crop_height = size[0] / scale, size[1] / scale
        left, top = (width - crop_width) / 2, (height - crop_height) / 2
        box = (left, top, left + crop_width, top + crop_height)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC, box))


def spread(frames: int, first: int, every: float) -> tuple[int, ...]:
    """Image numbers for the frames of a clip: one of `every`, from number `first`."""
    return tuple(first + round(frame * every) for frame in range(frames))


def _is_film(path: Path) -> bool:
    return not is_image(path) and not isdir(path)


def _images(source: ImageSource) -> Iterator[tuple[Path, np.ndarray]]:
    """Each image once, by number, with its file."""
    if _is_film(source.path):
        with open_video(source.path) as video:
            _check_count(source, video.num_frames)
            for image in video.frames(sorted(set(source.numbers)), mask=source.mask):
                yield source.path, image
        return
    places = list(_places(source).values())
    for (path, _), image in zip(places, read_stills(places, mask=source.mask), strict=True):
        yield path, image


def _places(source: ImageSource) -> dict[int, Place]:
    """By number, ascending, where an image of a folder or image file is."""
    numbers = sorted(set(source.numbers))
    if isdir(source.path):
        files = _files(source.path)
        _check_count(source, len(files))
        return {number: (files[number], 0) for number in numbers}
    times = still_times(source.path)
    if len(times) == 1:
        return dict.fromkeys(numbers, (source.path, 0))
    _check_count(source, len(times))
    shown = by_time(times, len(times))
    return {number: (source.path, int(shown[number])) for number in numbers}


def _files(folder: Path) -> list[Path]:
    """The images of a folder in order; hidden files are none."""
    found = [file for file in folder.iterdir() if is_image(file) and not is_hidden(file)]
    if not found:
        raise MediaError(
            f"{folder}: holds no images; name a folder of png or jpg files, or a video"
        )
    return sorted(found, key=_by_number)


def _by_number(file: Path) -> list[tuple[int, int, str]]:
    parts = re.findall(r"\d+|\D+", file.name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]


def _gap(files: Sequence[Path]) -> str:
    """The first file whose number is followed by a larger step than most are; else empty."""
    last = [int((re.findall(r"\d+", file.stem) or ["0"])[-1]) for file in files]
    steps = np.diff(last)
    gaps = np.flatnonzero(steps > np.median(steps)) if len(steps) else steps
    return files[gaps[0]].name if gaps.size else ""


def _check_count(source: ImageSource, count: int) -> None:
    last = max(source.numbers)
    if last >= count:
        raise MediaError(
            f"{source.path}: has {count} images but the clip needs number {last} (counted from "
            "0); make the clip shorter, or change first or every"
        )


def _check_size(source: ImageSource, size: tuple[int, int], path: Path) -> None:
    if source.fit == "exact" and size != source.size:
        raise MediaError(
            f"{path}: is {size[0]} x {size[1]} pixels but the clip {source.size[0]} x "
            f"{source.size[1]}; resize it, or set fit to crop or stretch"
        )
