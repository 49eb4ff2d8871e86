"""Images for the frames of a clip: from a video, a folder or a single file, fitted to size.

Files of a folder are ordered by name, numbers in a name by value (2 before 10).
Images are h w 3 uint8 RGB; several are f h w 3.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import MediaError
from ..jobs.choices import Fit
from .image import open_image, read_image
from .video import open_video

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"}


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


def check_images(source: ImageSource) -> None:
    """MediaError if images are missing, too few or of the wrong size; decodes no video frame."""
    files = _chosen_files(source)
    if files is not None:
        for file in dict.fromkeys(files):
            with open_image(file) as image:
                _check_size(source, image.size, file)
        return
    if _is_image(source.path):
        with open_image(source.path) as image:
            count, size = getattr(image, "n_frames", 1), image.size
    else:
        with open_video(source.path) as video:
            count, size = video.num_frames, video.size
    _check_count(source, count)
    _check_size(source, size, source.path)


def read_images(source: ImageSource) -> np.ndarray:
    """The images, fitted: f h w 3 uint8."""
    check_images(source)
    files = _chosen_files(source)
    if files is not None:
        return np.stack([fit_image(read_image(file), source.size, source.fit) for file in files])
    if _is_image(source.path):
        frames = _animation_frames(source)
    else:
        with open_video(source.path) as video:
            frames = video.read_frames(source.numbers)
    return np.stack([fit_image(frame, source.size, source.fit) for frame in frames])


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


def _is_image(path: Path) -> bool:
    """Whether Pillow reads the file, not ffmpeg."""
    return path.suffix.lower() in _SUFFIXES


def _chosen_files(source: ImageSource) -> list[Path] | None:
    """The image file of each frame; None if the path is a video or an animated image."""
    if source.path.is_dir():
        files = sorted((file for file in source.path.iterdir() if _is_image(file)), key=_by_number)
        if not files:
            raise MediaError(
                f"{source.path}: holds no images; name a folder of png or jpg files, or a video"
            )
        _check_count(source, len(files))
        return [files[number] for number in source.numbers]
    if not _is_image(source.path):
        return None
    with open_image(source.path) as image:
        return None if getattr(image, "n_frames", 1) > 1 else [source.path] * len(source.numbers)


def _by_number(file: Path) -> list[tuple[int, int, str]]:
    parts = re.findall(r"\d+|\D+", file.name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]


def _animation_frames(source: ImageSource) -> np.ndarray:
    """Frames of an animated gif, webp or png (ffmpeg cannot read all of them)."""
    frames = {}
    with open_image(source.path) as image:
        for number in sorted(set(source.numbers)):
            image.seek(number)
            frames[number] = np.asarray(image.convert("RGB"))
    return np.stack([frames[number] for number in source.numbers])


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
