"""Classifier-free guidance: how strong it is in each step, and what it makes of two predictions.

Legend: b batch, f frames, c channels, h w latent size.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from .interpolation import interpolate_number


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Guidance scale over the steps.

    Shares of the steps run from 0, the first step, to 1, the last.
    """

    scale: float = 7.5
    """1 or less is off: the negative prompt is not computed."""
    schedule: Mapping[float, float] | None = None
    """Scale by share of the steps, linear between, in place of `scale`."""
    rescale: float = 0.0
    """0..1, how far the guided prediction's standard deviation is restored (arXiv 2305.08891)."""
    interval: tuple[float, float] = (0.0, 1.0)
    """First and last share at which guidance acts (arXiv 2404.07724)."""

    def at(self, step: int, steps: int) -> float:
        """The scale in step 0..steps-1; 1 if guidance is off."""
        share = step / (steps - 1) if steps > 1 else 0.0
        start, end = self.interval
        if not start - _ROUNDING <= share <= end + _ROUNDING:
            return 1.0
        return self.scale if not self.schedule else interpolate_number(self.schedule, share)


_ROUNDING = 1e-9
"""3 of 10 steps are a share of 0.30000000000000004."""


def guide(cond: Tensor, uncond: Tensor, scale: float, rescale: float = 0.0) -> Tensor:
    """Classifier-free guidance of the two predictions, b c f h w each.

    `rescale` restores the standard deviation of each clip to that of the conditional prediction
    (arXiv 2305.08891, equations 15 and 16), against clips that burn out at high scales.
    """
    guided = uncond + scale * (cond - uncond)
    if rescale == 0:
        return guided
    axes = tuple(range(1, guided.ndim))
    ratio = cond.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True)
    return guided * (rescale * ratio + (1 - rescale))
