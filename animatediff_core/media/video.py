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
from .opening import MAX_PIXELS, check_pixels, open_film, reading_film
from .rgb import film_graph, frame_to_rgb

_INVISIBLE = ("vp8",)
"""Codecs with packets that show no frame."""
_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Decoders that read the alpha channel of a WebM; ffmpeg's own do not."""
_TIMED = ("mov", "matroska")
"""Containers with a time for each packet."""


def open_video(path: Path) -> "Video":
    """Open a video; MediaError if it is missing or cannot be read."""
    return Video(path)


def _decoded_by(name: str, packets: "Iterator[av.Packet]") -> "Iterator[av.VideoFrame]":
    decoder = av.CodecContext.create(name, "r")
    for packet in packets:
        yield from decoder.decode(packet)


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
        codec = stream.codec_context
        if codec.name == "rawvideo" and codec.pix_fmt == "pal8":
            self._container.close()
            raise self._error("is not compressed and has a palette, which is lost; make it an mp4")
        self._stream = stream
        self._stream.thread_type = "AUTO"
        self._stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *error: object) -> None:
        self._container.close()

    @property
    def num_frames(self) -> int:
        """Counted: headers may be wrong, and edit lists hide frames."""
        return len(self._shown)

    def frames(self, numbers: Sequence[int], *, mask: bool = False) -> Iterator[np.ndarray]:
        """The frames of these ascending numbers, one at a time: h w 3 uint8."""
        shown = [int(self._shown[number]) for number in numbers if number < self.num_frames]
        graph, done = None, 0
        for index, frame in enumerate(self._decoded()):
            if done < len(shown) and index == shown[done]:
                graph = graph or film_graph(self._stream, frame, self.path)
                pixels = frame_to_rgb(graph, frame, self.path, mask=mask)
                while done < len(shown) and index == shown[done]:
                    yield pixels
                    done += 1
            if done == len(numbers):
                return
        raise self._error(f"ends before frame {numbers[-1]}")

    def read_frames(self, numbers: Sequence[int]) -> np.ndarray:
        """The frames of these numbers, in this order: f h w 3 uint8."""
        ascending = sorted(set(numbers))
        found = dict(zip(ascending, self.frames(ascending), strict=True))
        return np.stack([found[number] for number in numbers])

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
                packets = self._container.demux(self._stream)
                times = [one.pts for one in packets if one.size and not one.is_discard]
        else:
            times = [frame.pts for frame in self._decoded()]
        if not times:
            raise self._error("holds no frames")
        return by_time([] if None in times else sorted(times), len(times))

    def _decoded(self) -> "Iterator[av.VideoFrame]":
        check_pixels(self.path, self._stream.width, self._stream.height)
        with reading_film(self.path):
            self._container.seek(0)
            decoder = None
            if self._stream.metadata.get("alpha_mode") == "1":
                decoder = _WITH_ALPHA.get(self._stream.codec_context.name)
            if decoder is None:
                yield from self._container.decode(self._stream)
            else:
                yield from _decoded_by(decoder, self._container.demux(self._stream))

    def _error(self, problem: str) -> MediaError:
        return MediaError(
            f"{self.path}: {problem}; repair it, convert it with ffmpeg, or remove it"
        )
