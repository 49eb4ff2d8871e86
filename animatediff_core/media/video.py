"""Videos read by frame number, in any container that ffmpeg knows.

Frames are h w 3 uint8 RGB; several are f h w 3.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np

from ..errors import MediaError


def open_video(path: Path) -> "Video":
    """Open a video; MediaError if it is missing or cannot be read."""
    return Video(path)


class Video:
    """An open video; use it in a `with` statement."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise MediaError(f"{path}: no such video; check the folder and the list of names")
        try:
            self._container = av.open(str(path))
        except (av.FFmpegError, OSError) as error:
            raise self._error("cannot be opened as a video") from error
        if not self._container.streams.video:
            self._container.close()
            raise self._error("has no video stream")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *error: object) -> None:
        self._container.close()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return int(self._stream.width), int(self._stream.height)

    @property
    def num_frames(self) -> int:
        """By the container's metadata, or counted."""
        if self._stream.frames:
            return int(self._stream.frames)
        count = sum(1 for _ in self._decoded())
        if count == 0:
            raise self._error("holds no frames")
        return count

    def read_frames(self, indices: Sequence[int]) -> np.ndarray:
        """The frames of these numbers, in this order: f h w 3 uint8."""
        wanted, last = set(indices), max(indices)
        found: dict[int, np.ndarray] = {}
        for index, frame in enumerate(self._decoded()):
            if index in wanted:
                found[index] = frame.to_ndarray(format="rgb24")
            if index == last:
                break
        if len(found) < len(wanted):
            raise self._error(f"ends before frame {last}")
        return np.stack([found[index] for index in indices])

    def read_all(self) -> np.ndarray:
        """Every frame: f h w 3 uint8."""
        frames = [frame.to_ndarray(format="rgb24") for frame in self._decoded()]
        if not frames:
            raise self._error("holds no frames")
        return np.stack(frames)

    def _decoded(self) -> "Iterator[av.VideoFrame]":
        try:
            self._container.seek(0)
            yield from self._container.decode(self._stream)
        except (av.FFmpegError, OSError) as error:
            raise self._error("is damaged") from error

    def _error(self, problem: str) -> MediaError:
        return MediaError(
            f"{self.path}: {problem}; repair it, convert it with ffmpeg, or remove it"
        )
