"""Clips as sequences of frames, read one at a time: memory does not grow with a clip's length.

Frames are h w 3 uint8 RGB.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image


class Frames(Protocol):
    """A clip: an array f h w 3 uint8, memory-mapped or not, or one of the views below."""

    def __len__(self) -> int:
        """Number of frames."""
        ...

    def __getitem__(self, index: int, /) -> np.ndarray:
        """One frame, h w 3 uint8."""
        ...


@dataclass(frozen=True)
class Picked:
    """Some of a clip's frames in another order."""

    frames: Frames
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> np.ndarray:
        return self.frames[self.indices[index]]


@dataclass(frozen=True)
class Scaled:
    """A clip in another size."""

    frames: Frames
    width: int
    height: int

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int, /) -> np.ndarray:
        picture = Image.fromarray(np.ascontiguousarray(self.frames[index]))
        return np.asarray(picture.resize((self.width, self.height), Image.Resampling.LANCZOS))


def ping_pong(frames: Frames) -> Picked:
    """Forth and back again: the turning frames are shown once, so that the clip loops evenly."""
    count = len(frames)
    return Picked(frames, [*range(count), *range(count - 2, 0, -1)])


def size_of(frames: Frames) -> tuple[int, int]:
    """Width and height in pixels; ValueError where these are no frames."""
    if not len(frames):
        raise ValueError("a clip must have at least one frame")
    first = frames[0]
    if first.ndim != 3 or first.shape[2] != 3 or first.dtype != np.uint8:
        raise ValueError(f"frames must be f h w 3 uint8, got {first.shape} {first.dtype} each")
    return first.shape[1], first.shape[0]


def durations(count: int, fps: float, *, unit: int = 100) -> list[int]:
    """Whole `unit`ths of a second for each frame; no frame starts more than half of one off."""
    starts = [round(unit * index / fps) for index in range(count + 1)]
    return [after - before for before, after in zip(starts, starts[1:], strict=False)]


def changed_box(before: np.ndarray, after: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what differs between two pictures; one pixel if nothing does."""
    differs = before != after
    if differs.ndim == 3:
        differs = differs.any(axis=2)
    rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
    if not rows.size:
        return 0, 0, 1, 1
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
