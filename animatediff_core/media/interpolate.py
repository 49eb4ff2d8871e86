"""More frames a second: ffmpeg's minterpolate moves the blocks of pixels part of their way."""

import tempfile
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np

from ..errors import MediaError
from .frames import Frames, Picked, size_of
from .on_disk import on_disk

_AHEAD = 3
"""Frames that the filter wants to see beyond the last one that it makes."""


def num_interpolated(count: int, fps: float, target: float) -> int:
    """Frames at `target` a second that last as long as `count` at `fps` (to half a frame)."""
    return round(count * target / fps)


def interpolated(
    frames: Frames, fps: float, target: float, *, loops: bool = False, folder: Path | None = None
) -> np.ndarray:
    """The clip at `target` frames a second: f h w 3, mapped from a file without a name in `folder`
    (by default where temporary files are).

    It lasts as long as it did and its n-th frame shows the time n / target. What comes after the
    last frame is the first one where the clip `loops`, else the last stays. MediaError where the
    filter is missing or the frames are too few or too small for it.
    """
    check_interpolation(*size_of(frames), len(frames))
    count = num_interpolated(len(frames), fps, target)
    after = [index % len(frames) if loops else len(frames) - 1 for index in range(_AHEAD)]
    longer = Picked(frames, [*range(len(frames)), *after])
    made = islice(_filtered(longer, fps, target), count)
    shown = on_disk((frame[None] for frame in made), folder or Path(tempfile.gettempdir()))
    if len(shown) != count:
        raise MediaError(f"minterpolate made {len(shown)} frames instead of {count}; leave it out")
    return shown


def check_interpolation(width: int, height: int, count: int) -> None:
    """MediaError where a clip cannot be interpolated."""
    if "minterpolate" not in av.filter.filters_available:
        raise MediaError("this PyAV has no minterpolate; leave output.interpolate out")
    if count < 2:
        raise MediaError("output.interpolate needs two frames or more; raise frames or leave it")
    if min(width, height) < 16:
        raise MediaError(
            f"output.interpolate needs 16 pixels a side or more, got {width} x {height}"
        )


def _filtered(frames: Frames, fps: float, target: float) -> Iterator[np.ndarray]:
    width, height = size_of(frames)
    second = Fraction(fps).limit_denominator(100_000)
    rate = Fraction(target).limit_denominator(100_000)
    block = 16 if min(width, height) >= 32 else 8
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format="rgb24", time_base=1 / second)
    chain = [
        source,
        graph.add("format", "yuv444p"),  # motion is found in brightness
        graph.add("minterpolate", f"fps={rate}:scd=none:mb_size={block}"),
        graph.add("format", "rgb24"),
        graph.add("buffersink"),
    ]
    for one, next_one in zip(chain, chain[1:], strict=False):
        one.link_to(next_one)
    graph.configure()
    for index in range(len(frames)):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frames[index]), format="rgb24")
        frame.pts, frame.time_base = index, 1 / second
        graph.vpush(frame)
        yield from _ready(graph)
    graph.vpush(None)
    yield from _ready(graph)


def _ready(graph: "av.filter.Graph") -> Iterator[np.ndarray]:
    while True:
        try:
            frame = graph.vpull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        yield frame.to_ndarray(format="rgb24")
