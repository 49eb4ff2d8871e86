"""Checks of a finished clip: a broken clip fails its job, a doubtful one gives a warning.

Frames are h w 3 uint8. The thresholds are values of 0..255 and lie far from what models paint:
even "a black circle on a black background" of the bundled model spreads over 64 values, and two
frames of a real model never agree in every pixel, as each starts from noise of its own.
"""

from dataclasses import dataclass

import numpy as np

from ..media.frames import Frames

FLAT = 2
"""If the values of all pixels and frames differ by no more, the clip is one colour: broken."""
NEARLY_FLAT = 16
"""By no more than this: doubtful."""
NEARLY_STILL = 1
"""No pixel of any frame differs by more from the first frame: doubtful. By nothing: broken."""


@dataclass(frozen=True)
class Verdict:
    """The result of the checks; both None for a sound clip."""

    fault: str | None = None
    """Why its job has failed."""
    doubt: str | None = None
    """Warning: a person should look at the clip."""


def judge(frames: Frames, count: int) -> Verdict:
    """Look at every frame of a clip that should have `count`."""
    if len(frames) != count:
        return Verdict(fault=f"{len(frames)} frames came out instead of {count}")
    first = frames[0]
    low, high, moved = np.full(3, 255), np.zeros(3), 0
    for index in range(count):
        frame = frames[index]
        low = np.minimum(low, frame.min(axis=(0, 1)))
        high = np.maximum(high, frame.max(axis=(0, 1)))
        if index and moved <= NEARLY_STILL:
            moved = max(moved, int(np.abs(frame.astype(np.int16) - first).max()))
    spread = int((high - low).max())
    if spread <= FLAT:
        return Verdict(fault=f"every pixel of every frame is {_colour(low, high)}")
    if count > 1 and moved == 0:
        return Verdict(fault=f"all {count} frames are the same image")
    if spread <= NEARLY_FLAT:
        return Verdict(doubt=f"nearly every pixel is {_colour(low, high)}")
    if count > 1 and moved <= NEARLY_STILL:
        return Verdict(doubt=f"the {count} frames are nearly the same image")
    return Verdict()


def _colour(low: np.ndarray, high: np.ndarray) -> str:
    middle = ((low + high) / 2).round().astype(int)
    code = "#" + "".join(f"{value:02x}" for value in middle)
    if high.max() <= NEARLY_FLAT:
        return f"black ({code})"
    if low.min() >= 255 - NEARLY_FLAT:
        return f"white ({code})"
    return f"{'grey' if np.ptp(middle) <= NEARLY_FLAT else 'one colour'} ({code})"
