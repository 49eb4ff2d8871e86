"""Search for the best encoding of a clip below a file size.

Fewer colours or lower quality come first, then a smaller image size, then fewer frames a second.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import MediaError
from ..jobs import Encoding
from .atomic import atomic_write
from .clip import encode
from .ffmpeg import DEFAULT_CRF, codec_of
from .frames import Frames, Picked, Scaled, size_of

COLOURS = (256, 128, 64, 32, 16)
QUALITIES = (90, 75, 60, 45, 30, 15)
CRF_STEP, LAST_CRF = 5, {"h264": 43, "h265": 43, "av1": 55, "vp9": 55}
SCALES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25)
MIN_SIDE = 16
"""Pixels a side; nothing is scaled below it."""
EVERY = (2, 3, 4)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One way to write a clip."""

    encoding: Encoding
    width: int
    height: int
    colours: int | None = None
    """Of the palette of gif and apng."""
    every: int = 1
    """1 writes every frame, 2 every second one."""

    def view(self, frames: Frames) -> Frames:
        """The frames to write."""
        if self.every > 1:
            frames = Picked(frames, range(0, len(frames), self.every))
        if (self.width, self.height) != size_of(frames):
            frames = Scaled(frames, self.width, self.height)
        return frames


Lowered = dict[str, int | float]
"""New values of what was lowered: colours, quality or crf, width and height, fps."""


def write_within(
    frames: Frames, path: Path, encoding: Encoding, max_size: int, text: Callable[[Lowered], str]
) -> Lowered:
    """Write the best attempt with at most `max_size` bytes; returns what was lowered.

    `text` makes the settings that the file carries. MediaError if the last attempt is too large.
    """
    attempts = attempts_for(encoding, frames)
    with atomic_write(path) as temporary:

        def size(number: int) -> int:
            attempt = attempts[number]
            view, lowered = attempt.view(frames), _lowered(attempts[0], attempt)
            encode(view, temporary, attempt.encoding, text(lowered), attempt.colours)
            return temporary.stat().st_size

        if size(0) <= max_size:
            return {}
        low, high, written = 1, len(attempts) - 1, 0
        while low < high:  # bisection: each attempt is smaller than the one before
            written = (low + high) // 2
            if size(written) <= max_size:
                high = written
            else:
                low = written + 1
        reached = temporary.stat().st_size if written == high else size(high)
        if reached > max_size:
            raise MediaError(
                f"{path.name}: cannot be brought below max_size {max_size} bytes; {reached} was "
                "reached; raise max_size or make the clip shorter"
            )
        return _lowered(attempts[0], attempts[high])


def attempts_for(encoding: Encoding, frames: Frames) -> Sequence[Attempt]:
    """The encoding unchanged, then smaller and smaller files."""
    settings = {key: getattr(encoding, key) for key in Encoding.model_fields}
    encoding = Encoding(**{**settings, "fps": encoding.shown_fps})
    width, height = size_of(frames)
    attempts = [Attempt(encoding=encoding, width=width, height=height)]
    attempts += [replace(attempts[0], **lower) for lower in _lower_quality(encoding)]
    even = 2 if encoding.format in ("mp4", "webm") else 1
    for scale in SCALES:
        sides = [round(scale * side / even) * even for side in (width, height)]
        last = attempts[-1]
        if min(sides) >= MIN_SIDE and sides != [last.width, last.height]:
            attempts.append(replace(last, width=sides[0], height=sides[1]))
    last = attempts[-1]
    for every in EVERY:
        if len(frames) > every:
            slower = last.encoding.replace(fps=encoding.fps / every)
            attempts.append(replace(last, every=every, encoding=slower))
    return attempts


def _lower_quality(encoding: Encoding) -> list[dict[str, Any]]:
    if encoding.format in ("gif", "apng"):
        return [{"colours": n} for n in COLOURS if n < 256 or encoding.format == "apng"]
    if encoding.format == "webp":
        start = 101 if encoding.quality is None else encoding.quality
        return [{"encoding": encoding.replace(quality=n)} for n in QUALITIES if n < start]
    codec = codec_of(encoding)
    start = DEFAULT_CRF[codec] if encoding.crf is None else encoding.crf
    steps = range(start + CRF_STEP, LAST_CRF[codec] + 1, CRF_STEP)
    return [{"encoding": encoding.replace(crf=n)} for n in steps]


def _lowered(first: Attempt, attempt: Attempt) -> Lowered:
    lowered = Lowered()
    if attempt.colours is not None:
        lowered["colours"] = attempt.colours
    for key in ("quality", "crf", "fps"):
        if (value := getattr(attempt.encoding, key)) != getattr(first.encoding, key):
            lowered[key] = value
    if (attempt.width, attempt.height) != (first.width, first.height):
        lowered |= {"width": attempt.width, "height": attempt.height}
    return lowered
