"""Classifier-free guidance: how strong it is in each step, and what it makes of two predictions.

Legend: b batch, f frames, c channels, h w latent size.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How strongly the text and its negative pull, over the steps.

    Shares of the steps run from 0, the first step, to 1, the last.
    """

    scale: float = 7.5
    """1 or less is off: the negative half is not computed."""
    schedule: Mapping[float, float] | None = None
    """Scale by share of the steps, linear between, in place of `scale`."""
    rescale: float = 0.0
    """0..1, how far the guided prediction's spread is brought back (arXiv 2305.08891)."""
    interval: tuple[float, float] = (0.0, 1.0)
    """First and last share at which guidance acts (arXiv 2404.07724)."""

    def at(self, step: int, steps: int) -> float:
        """The scale in step 0..steps-1; 1 where guidance is off."""
        share = step / (steps - 1) if steps > 1 else 0.0
        start, end = self.interval
        if not start - _ROUNDING <= share <= end + _ROUNDING:
            return 1.0
        return self.scale if not self.schedule else _between(self.schedule, share)


_ROUNDING = 1e-9
"""3 of 10 steps are a share of 0.30000000000000004."""


def _between(schedule: Mapping[float, float], share: float) -> float:
    """The line through the points; before the first and after the last it is level."""
    points = sorted(schedule.items())
    for (left, low), (right, high) in zip(points, points[1:], strict=False):
        if left <= share <= right:
            return low + (high - low) * (share - left) / (right - left)
    return points[0][1] if share < points[0][0] else points[-1][1]


def guide(predicted: Tensor, without: Tensor, scale: float, rescale: float = 0.0) -> Tensor:
    """Both b c f h w: from the negative text's prediction past the text's own.

    `rescale` brings the standard deviation of each clip back towards the text's prediction
    (arXiv 2305.08891, equations 15 and 16), against clips that burn out at high scales.
    """
    guided = without + scale * (predicted - without)
    if rescale == 0:
        return guided
    axes = tuple(range(1, guided.ndim))
    kept = predicted.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True)
    return guided * (rescale * kept + (1 - rescale))
