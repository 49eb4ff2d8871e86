"""Interpolation between key frames: numbers, and embeddings or latents.

Before the first key frame the first value holds, after the last key frame the last value; in a loop
the way goes on around the clip's end.

Legend: k key frames, f frames, d features.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..jobs.choices import Travel

_NO_ARC = 1e-3
"""Sine of the angle below which two directions have no arc between them that fp32 can resolve."""


def interpolate_number(values: Mapping[Any, float], at: float) -> float:
    """A number at one point, linear between those at the key frames."""
    keys = sorted(values)
    return float(np.interp(at, keys, [values[key] for key in keys]))


def numbers_by_frame(values: Mapping[int, float] | None, frames: int) -> tuple[float, ...]:
    """A number for each frame; empty if there are no key frames."""
    if values is None:
        return ()
    return tuple(interpolate_number(values, frame) for frame in range(frames))


def interpolate(
    values: Tensor,
    keys: Sequence[int],
    frames: Sequence[int],
    way: Travel = "linear",
    *,
    loop: int | None = None,
) -> Tensor:
    """Values at key frames, k ..., with the `keys` in order -> values at some frames, f ...

    At a key frame the value is that key frame's own, bit for bit. A frame's value does not depend
    on which other frames are computed. In a `loop` of so many frames, the last key frame is
    followed by the first.
    """
    if loop is not None:
        keys = (keys[-1] - loop, *keys, keys[0] + loop)
        values = torch.cat((values[-1:], values, values[:1]))
    brackets = [_bracket(keys, frame) for frame in frames]
    before, after, fraction = (
        torch.tensor(one).to(values.device, non_blocking=True)
        for one in zip(*brackets, strict=True)
    )
    fraction = fraction.view(-1, *[1] * (values.ndim - 1))  # f 1 ... 1
    return (slerp if way == "slerp" else _lerp)(values[before], values[after], fraction)


def _bracket(keys: Sequence[int], frame: int) -> tuple[int, int, float]:
    """Indices of the key frames before and after a frame, and the fraction of the way between."""
    after = next((i for i, key in enumerate(keys) if key > frame), len(keys))
    before = max(after - 1, 0)
    if after in (len(keys), before):
        return before, before, 0.0
    return before, after, (frame - keys[before]) / (keys[after] - keys[before])


def _lerp(start: Tensor, end: Tensor, fraction: Tensor) -> Tensor:
    return ((1 - fraction) * start.float() + fraction * end.float()).to(start)


def slerp(start: Tensor, end: Tensor, fraction: Tensor) -> Tensor:
    """Spherical interpolation of each vector: its length changes evenly from start to end.

    start, end: ... d; fraction: 0..1, broadcast to them. Where there is no arc, it is linear.
    """
    a, b = start.float(), end.float()
    cosine = F.cosine_similarity(a, b, dim=-1).unsqueeze(-1)
    angle = cosine.clamp(-1, 1).acos()
    sine = angle.sin()
    arc = ((1 - fraction) * angle).sin() * a + (fraction * angle).sin() * b
    way = torch.where(sine < _NO_ARC, _lerp(a, b, fraction), arc / sine.clamp(min=_NO_ARC))
    way = torch.where(fraction == 0, a, torch.where(fraction == 1, b, way))
    return way.to(start)
