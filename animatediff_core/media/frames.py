"""Clips as sequences of frames, read one at a time so that memory does not grow with the length.

Frames are h w 3 uint8 RGB.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image


class Frames(Protocol):
    """A clip: an array f h w 3 uint8, memory-mapped or not, or a view of one."""

    def __len__(self) -> int:
        """Number of frames."""

    def __getitem__(self, index: int, /) -> np.ndarray:
        """One frame, h w 3 uint8."""


@dataclass(frozen=True)
class Picked:
    """View of chosen frames of a clip, in any order."""

    frames: Frames
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> np.ndarray:
        return self.frames[self.indices[index]]


@dataclass(frozen=True)
class Scaled:
    """View of a clip in another size."""

    frames: Frames
    width: int
    height: int

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int, /) -> np.ndarray:
        image = Image.fromarray(np.ascontiguousarray(self.frames[index]))
        return np.asarray(image.resize((self.width, self.height), Image.Resampling.LANCZOS))


def ping_pong(frames: Frames) -> Picked:
    """The clip forwards, then backwards; the turning frames are shown once."""
    count = len(frames)
    return Picked(frames, [*range(count), *range(count - 2, 0, -1)])


def size_of(frames: Frames) -> tuple[int, int]:
    """Width and height in pixels; ValueError if these are no frames."""
    if not len(frames):
        raise ValueError("a clip must have at least one frame")
    first = frames[0]
    if first.ndim != 3 or first.shape[2] != 3 or first.dtype != np.uint8:
        raise ValueError(f"frames must be f h w 3 uint8, got {first.shape} {first.dtype} each")
    return first.shape[1], first.shape[0]


def durations(count: int, fps: float, *, unit: int = 100) -> list[int]:
    """Durations in whole 1/`unit` s; each frame starts within half a unit of its exact time."""
    starts = [round(unit * index / fps) for index in range(count + 1)]
    return [after - before for before, after in zip(starts, starts[1:], strict=False)]


def by_time(times: Sequence[float], count: int) -> np.ndarray:
    """For each number n below `count`, the frame that is shown at n / average rate.

    `times`: when each frame appears, ascending. Frames are evenly spaced without times, or if none
    is off by half the time of a frame.
    """
    numbers = np.arange(count)
    if not times or times[-1] == times[0]:
        return numbers
    slots = (np.asarray(times, np.float64) - times[0]) * ((count - 1) / (times[-1] - times[0]))
    if np.abs(slots - numbers).max() < 0.5:
        return numbers
    return np.searchsorted(slots, numbers + 1e-3, side="right") - 1


Box = tuple[int, int, int, int]
"""Left, top, right, bottom."""


def changes(frames: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray | None, np.ndarray, Box]]:
    """Each frame with the one before it and the box in which they differ (h w or h w 3).

    The box holds one pixel if nothing changes, and the whole first frame.
    """
    previous = None
    for frame in frames:
        box = (0, 0, frame.shape[1], frame.shape[0])
        if previous is not None:
            differs = (previous != frame).reshape(*frame.shape[:2], -1).any(axis=2)
            rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
            box = (0, 0, 1, 1)
            if rows.size:
                box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        yield previous, frame, box
        previous = frame
