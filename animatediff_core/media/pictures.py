"""Pictures for the frames of a clip: out of a video, a folder or a single file, and fitted to size.

A folder's pictures are taken in the order of their names, numbers by value (2 before 10).
Pictures are h w 3 uint8 RGB; several are f h w 3.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import MediaError
from .video import open_video, read_picture

Fit = Literal["exact", "crop", "stretch"]
_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"}


@dataclass(frozen=True)
class PictureSource:
    """Which pictures a clip takes from where."""

    path: Path
    """A video, a folder of pictures, or one picture, which stands for all frames."""
    numbers: tuple[int, ...]
    """For each frame of the clip, the number of its picture, from 0."""
    size: tuple[int, int]
    """Width and height of the clip in pixels."""
    fit: Fit = "exact"
    """exact: they must have that size; crop: the largest middle part of that shape, resized;
    stretch: resized as they are."""


def check_source(source: PictureSource) -> None:
    """MediaError where pictures are missing, too few or of the wrong size; reads no frame of a
    video."""
    still = _is_picture(source.path)
    if source.path.is_dir() or still:
        files = _listed(source.path)
        if not still:
            _check_count(source, len(files))
        for number in sorted(set(source.numbers)):
            file = files[0 if still else number]
            _check_size(source, _size_of(file), str(file))
        return
    if source.path.suffix.lower() in _ENDINGS:
        with _opened(source.path) as film:
            _check_count(source, getattr(film, "n_frames", 1))
            _check_size(source, (film.width, film.height), str(source.path))
        return
    with open_video(source.path) as video:
        _check_count(source, video.num_frames)
        _check_size(source, video.size, str(source.path))


def read_source(source: PictureSource) -> np.ndarray:
    """The pictures, fitted: f h w 3 uint8."""
    check_source(source)
    still = _is_picture(source.path)
    if source.path.is_dir() or still:
        files = _listed(source.path)
        return np.stack(
            [
                fitted(read_picture(files[0 if still else number]), source.size, source.fit)
                for number in source.numbers
            ]
        )
    if source.path.suffix.lower() in _ENDINGS:
        frames = _film(source)
    else:
        with open_video(source.path) as video:
            frames = video.read_frames(source.numbers)
    return np.stack([fitted(frame, source.size, source.fit) for frame in frames])


def fitted(picture: np.ndarray, size: tuple[int, int], fit: Fit) -> np.ndarray:
    """A picture, h w 3 uint8, brought to a width and height in pixels."""
    height, width = picture.shape[:2]
    if (width, height) == size:
        return picture
    box = None
    if fit == "crop":
        scale = max(size[0] / width, size[1] / height)
        across, down = size[0] / scale, size[1] / scale
        left, top = (width - across) / 2, (height - down) / 2
        box = (left, top, left + across, top + down)
    resized = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC, box)
    return np.asarray(resized)


def spread(frames: int, first: int, every: float) -> tuple[int, ...]:
    """Numbers of a clip's pictures: one of `every` from number `first` on."""
    return tuple(first + round(frame * every) for frame in range(frames))


def _is_picture(path: Path) -> bool:
    """One picture, not a film: a gif, webp or png with several frames is one."""
    if path.suffix.lower() not in _ENDINGS or path.is_dir():
        return False
    if not path.is_file():
        raise MediaError(f"{path}: no such picture; check the path")
    with _opened(path) as picture:
        return getattr(picture, "n_frames", 1) == 1


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as picture:
            yield picture
    except (UnidentifiedImageError, OSError, EOFError) as error:
        raise MediaError(f"{path}: cannot be read as a picture; mend or remove it") from error


def _film(source: PictureSource) -> np.ndarray:
    """The frames of an animated gif, webp or png, which ffmpeg does not know all."""
    frames = {}
    with _opened(source.path) as film:
        for number in sorted(set(source.numbers)):
            film.seek(number)
            frames[number] = np.asarray(film.convert("RGB"))
    return np.stack([frames[number] for number in source.numbers])


def _listed(path: Path) -> Sequence[Path]:
    if not path.is_dir():
        return [path]
    files = [file for file in path.iterdir() if file.suffix.lower() in _ENDINGS]
    if not files:
        raise MediaError(
            f"{path}: holds no pictures; name a folder of png or jpg files, or a video"
        )
    return sorted(files, key=_by_number)


def _by_number(file: Path) -> list[tuple[int, int, str]]:
    parts = re.findall(r"\d+|\D+", file.name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]


def _size_of(file: Path) -> tuple[int, int]:
    with _opened(file) as picture:
        return int(picture.width), int(picture.height)


def _check_count(source: PictureSource, there: int) -> None:
    last = max(source.numbers)
    if last >= there:
        raise MediaError(
            f"{source.path}: has {there} pictures but the clip needs number {last} (counted from "
            "0); make the clip shorter, or change first or every"
        )


def _check_size(source: PictureSource, size: tuple[int, int], name: str) -> None:
    if source.fit == "exact" and size != source.size:
        raise MediaError(
            f"{name}: is {size[0]} x {size[1]} pixels but the clip {source.size[0]} x "
            f"{source.size[1]}; give it that size, or say fit: crop or fit: stretch"
        )
