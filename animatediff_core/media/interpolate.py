"""Frame interpolation with ffmpeg's minterpolate filter (motion-compensated blocks)."""

import tempfile
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path

import av
import numpy as np

from ..errors import MediaError
from .frames import Frames, Picked, size_of
from .on_disk import on_disk

_LOOKAHEAD = 3
"""Frames that the filter needs after the last one that it makes."""


def num_interpolated(count: int, fps: float, target: float) -> int:
    """Frames at `target` a second that last as long as `count` at `fps` (to half a frame)."""
    return round(count * target / fps)


def interpolated(
    frames: Frames, fps: float, target: float, *, loops: bool = False, folder: Path | None = None
) -> np.ndarray:
    """The clip at `target` frames a second, with the same duration: f h w 3, on disk in `folder`.

    Frame n shows the time n / target. After the last frame comes the first if the clip `loops`,
    else the last is repeated. MediaError if the filter is missing, or frames are too few or small.
    """
    check_interpolation(*size_of(frames), len(frames))
    count = num_interpolated(len(frames), fps, target)
    after = [index % len(frames) if loops else len(frames) - 1 for index in range(_LOOKAHEAD)]
    longer = Picked(frames, [*range(len(frames)), *after])
    made = islice(_filtered(longer, fps, target), count)
    shown = on_disk((frame[None] for frame in made), folder or Path(tempfile.gettempdir()))
    if len(shown) != count:
        raise MediaError(f"minterpolate made {len(shown)} frames instead of {count}; leave it out")
    return shown


def check_interpolation(width: int, height: int, count: int) -> None:
    """MediaError if a clip cannot be interpolated."""
    if "minterpolate" not in av.filter.filters_available:
        raise MediaError("this PyAV has no minterpolate; leave output.interpolate out")
    if count < 2:
        raise MediaError(
            "output.interpolate needs two frames or more; raise frames or leave it out"
        )
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
    for node, following in pairwise(chain):
        node.link_to(following)
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
