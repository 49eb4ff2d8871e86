"""Videos and pictures read by frame number, in any container that ffmpeg knows.

Frames are h w 3 uint8 RGB; several are f h w 3.
"""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import MediaError


def open_video(path: Path) -> "Video":
    """Open a video; MediaError names the file where it cannot be read."""
    return Video(path)


class Video:
    """One open video; use it in a `with` statement."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise MediaError(f"{path}: no such video; check the folder and the list of names")
        try:
            self._container = av.open(str(path))
        except (av.FFmpegError, OSError) as error:
            raise self._broken("cannot be opened as a video") from error
        if not self._container.streams.video:
            self._container.close()
            raise self._broken("has no video stream")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"

    def __enter__(self) -> "Video":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._container.close()

    @property
    def fps(self) -> float:
        """Frames a second, as the container says; 0 where it does not."""
        return float(self._stream.average_rate or 0)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return int(self._stream.width), int(self._stream.height)

    @property
    def num_frames(self) -> int:
        """As the container says, or counted where it does not."""
        if self._stream.frames:
            return int(self._stream.frames)
        count = sum(1 for _ in self._decoded())
        if count == 0:
            raise self._broken("holds no frames")
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
            raise self._broken(f"ends before frame {last}")
        return np.stack([found[index] for index in indices])

    def read_all(self) -> np.ndarray:
        """Every frame: f h w 3 uint8."""
        frames = [frame.to_ndarray(format="rgb24") for frame in self._decoded()]
        if not frames:
            raise self._broken("holds no frames")
        return np.stack(frames)

    def _decoded(self):  # type: ignore[no-untyped-def]
        try:
            self._container.seek(0)
            yield from self._container.decode(self._stream)
        except (av.FFmpegError, OSError) as error:
            raise self._broken("is damaged") from error

    def _broken(self, what: str) -> MediaError:
        return MediaError(f"{self.path}: {what}; mend it, convert it with ffmpeg, or remove it")


def read_picture(path: Path) -> np.ndarray:
    """One picture: h w 3 uint8."""
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise MediaError(f"{path}: cannot be read as a picture; mend or remove it") from error
