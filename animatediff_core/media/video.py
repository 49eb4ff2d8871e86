"""Videos read by frame number, in any container that ffmpeg reads from one file.

Frames are h w 3 uint8 RGB; several are f h w 3.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import av
import numpy as np

from ..errors import MediaError
from .frames import by_time
from .opening import check_pixels, open_film, reading_film
from .rgb import film_graph, frame_to_rgb

_INVISIBLE = ("vp8",)
"""Codecs with packets that show no frame."""
_TIMED = ("mov", "matroska")
"""Containers with a time for each packet."""


def open_video(path: Path) -> "Video":
    """Open a video; MediaError if it is missing or cannot be read."""
    return Video(path)


class Video:
    """An open video; use it in a `with` statement.

    Frame `n` is shown at the time n / average rate, so that variable frame rates are read evenly.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._container = open_film(path)
        stream = self._container.streams.best("video")
        if stream is None or stream.codec_context is None:
            self._container.close()
            raise self._error("has no video stream that can be decoded")
        self._stream = stream
        self._stream.thread_type = "AUTO"

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *error: object) -> None:
        self._container.close()

    @property
    def num_frames(self) -> int:
        """Counted: headers may be wrong, and edit lists hide frames."""
        return len(self._shown)

    def read_frames(self, numbers: Sequence[int], *, mask: bool = False) -> np.ndarray:
        """The frames of these numbers, in this order: f h w 3 uint8."""
        shown = self._shown
        wanted = [int(shown[number]) if number < len(shown) else number for number in numbers]
        last = max(wanted)
        found: dict[int, np.ndarray] = {}
        graph = None
        for index, frame in enumerate(self._decoded()):
            if index in wanted:
                graph = graph or film_graph(self._stream, frame, self.path)
                found[index] = frame_to_rgb(graph, frame, self.path, mask=mask)
            if index == last:
                break
        if last not in found:
            raise self._error(f"ends before frame {last}")
        return np.stack([found[index] for index in wanted])

    def read_all(self) -> np.ndarray:
        """Every frame: f h w 3 uint8."""
        return self.read_frames(range(self.num_frames))

    @cached_property
    def _shown(self) -> np.ndarray:
        """By number, which decoded frame is shown."""
        name, codec = self._container.format.name, self._stream.codec_context.name
        if name.startswith(_TIMED) and codec not in _INVISIBLE:
            with reading_film(self.path):
                self._container.seek(0)
                packets = [one for one in self._container.demux(self._stream) if one.size]
            times = [one.pts for one in packets if not one.is_discard]
        else:
            times = [frame.pts for frame in self._decoded()]
        if not times:
            raise self._error("holds no frames")
        return by_time([] if None in times else sorted(times), len(times))

    def _decoded(self) -> "Iterator[av.VideoFrame]":
        check_pixels(self.path, self._stream.width, self._stream.height)
        with reading_film(self.path):
            self._container.seek(0)
            yield from self._container.decode(self._stream)

    def _error(self, problem: str) -> MediaError:
        return MediaError(
            f"{self.path}: {problem}; repair it, convert it with ffmpeg, or remove it"
        )
