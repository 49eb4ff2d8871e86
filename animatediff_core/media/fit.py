"""A clip below a size on disk, by search.

Fewer colours or lower quality come first, then smaller pictures, then fewer frames a second.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import MediaError
from .atomic import replacing
from .clip import encode
from .encoding import Encoding
from .frames import Frames, Picked, Scaled, size_of
from .movie import USUAL_CRF, codec_of

COLOURS = (256, 128, 64, 32, 16)
QUALITIES = (90, 75, 60, 45, 30, 15)
CRF_STEP, LAST_CRF = 5, {"h264": 43, "h265": 43, "av1": 55, "vp9": 55}
SCALES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25)
SMALLEST = 16
"""Pixels a side below which nothing is scaled."""
EVERY = (2, 3, 4)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One way to write a clip; each of a row gives a smaller file than the one before."""

    encoding: Encoding
    width: int
    height: int
    every: int = 1
    """1 shows every frame, 2 every second, ..."""

    def view(self, frames: Frames) -> Frames:
        """The frames that it shows."""
        if self.every > 1:
            frames = Picked(frames, range(0, len(frames), self.every))
        if (self.width, self.height) != size_of(frames):
            frames = Scaled(frames, self.width, self.height)
        return frames


Done = dict[str, int | float]
"""What was lowered, by name: colours, quality or crf, width and height, fps."""


def write_fitting(
    frames: Frames, path: Path, encoding: Encoding, max_size: int, text: Callable[[Done], str]
) -> Done:
    """Write the best of the attempts that has at most `max_size` bytes; returns what was done.

    `text` makes what the file carries of it. MediaError where even the last is too large.
    """
    attempts = list(attempts_for(encoding, frames))
    with replacing(path) as beside:

        def size(number: int) -> int:
            one = attempts[number]
            encode(one.view(frames), beside, one.encoding, text(_done(attempts, number)))
            return beside.stat().st_size

        low, high, written = 0, len(attempts) - 1, 0
        if size(0) <= max_size:
            return {}
        low += 1
        while low < high:  # the first that fits, as each is smaller than the one before
            written = (low + high) // 2
            if size(written) <= max_size:
                high = written
            else:
                low = written + 1
        reached = beside.stat().st_size if written == high else size(high)
        if reached > max_size:
            raise MediaError(
                f"{path.name}: cannot be brought below max_size {max_size} bytes; {reached} was "
                "reached; raise max_size or make the clip shorter"
            )
        return _done(attempts, high)


def attempts_for(encoding: Encoding, frames: Frames) -> Sequence[Attempt]:
    """The encoding as it is, then lower quality, then smaller pictures, then fewer frames."""
    width, height = size_of(frames)
    row = [Attempt(encoding=encoding, width=width, height=height)]
    row += [replace(row[0], encoding=lower) for lower in _lower_quality(encoding)]
    even = 2 if encoding.format in ("mp4", "webm") else 1
    for scale in SCALES:
        sides = [round(scale * side / even) * even for side in (width, height)]
        if min(sides) >= SMALLEST and sides != [row[-1].width, row[-1].height]:
            row.append(replace(row[-1], width=sides[0], height=sides[1]))
    last = row[-1]
    for every in EVERY:
        if len(frames) > every:
            slower = replace(last.encoding, fps=encoding.fps / every)
            row.append(replace(last, every=every, encoding=slower))
    return row


def _lower_quality(encoding: Encoding) -> list[Encoding]:
    if encoding.format in ("gif", "apng"):
        start = encoding.colours or (255 if encoding.format == "gif" else 257)
        return [replace(encoding, colours=n) for n in COLOURS if n < start]
    if encoding.format == "webp":
        start = 101 if encoding.quality is None else encoding.quality
        return [replace(encoding, quality=n) for n in QUALITIES if n < start]
    if encoding.format in ("mp4", "webm"):
        codec = codec_of(encoding)
        start = USUAL_CRF[codec] if encoding.crf is None else encoding.crf
        steps = range(start + CRF_STEP, LAST_CRF[codec] + 1, CRF_STEP)
        return [replace(encoding, crf=n) for n in steps]
    return []


def _done(attempts: Sequence[Attempt], number: int) -> Done:
    first, one, done = attempts[0], attempts[number], Done()
    for key in ("colours", "quality", "crf", "fps"):
        if (value := getattr(one.encoding, key)) != getattr(first.encoding, key):
            done[key] = value
    if (one.width, one.height) != (first.width, first.height):
        done |= {"width": one.width, "height": one.height}
    return done
