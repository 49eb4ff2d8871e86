"""Fewer calls of the UNet for a price: some steps take the clean clip of an earlier one.

From one step to the next the noisy clip changes much, the clean clip that the model sees in it
little. So what is used again is that clip, turned into what the scheduler expects of this step. In
the first steps, which decide what moves where, the model always runs, and in one of the last two.

Legend: b batch, f frames, c channels, h w latent size.
"""

from collections.abc import Callable

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

_SPANS = {
    1: ((0.6, 0.85, 2),),
    2: ((0.375, 0.8, 2),),
    3: ((0.25, 0.375, 2), (0.375, 1.0, 3)),
}
"""By level: from which share of the steps to which one only one of so many runs, the last of them.
Chosen on the bundled model at 16 steps, by the distance from the exact clip."""
LEVELS = tuple(_SPANS)
_ALWAYS = 2
"""First steps in which the model runs, however few there are."""
_FEW = 8
"""With more steps the last one may do without the model."""


def runs(level: int, step: int, steps: int) -> bool:
    """Whether the model runs in a step, 0 for the first of `steps`; level 0 always runs."""
    if level == 0:
        return True
    for first, last, every in _SPANS[level]:
        begin = max(round(first * steps), _ALWAYS)
        if begin <= step < round(last * steps):
            due = (step - begin) % every == every - 1
            return due or (step == steps - 1 and not (last == 1 and _can_end(level, steps)))
    return True


def _can_end(level: int, steps: int) -> bool:
    """Whether the last step can do with the clean clip of the one before."""
    return steps > _FEW and runs(level, steps - 2, steps)


class Reuse:
    """What the loop keeps from the last step in which the model ran."""

    def __init__(self, level: int, scheduler: SchedulerMixin) -> None:
        self.level = level
        self.alphas: Tensor = scheduler.alphas_cumprod.cpu()
        self.kind = str(scheduler.config.prediction_type)
        self.clean: Tensor | None = None
        """b c f h w."""

    def predict(self, given: Tensor, timestep: Tensor, step: int, steps: int) -> Tensor | None:
        """The prediction for what the model would be given, or None where it must run. The
        timestep is on the CPU, here and below."""
        if self.clean is None or runs(self.level, step, steps):
            return None
        return _prediction(self.kind)(given, self.clean, *self._shares(timestep))

    def keep(self, given: Tensor, predicted: Tensor, timestep: Tensor) -> None:
        """Note what the model said of what it was given."""
        if self.level:
            self.clean = _clean(self.kind)(given, predicted, *self._shares(timestep))

    def _shares(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Of the clean clip and of noise in the model's input; between two timesteps linear."""
        last = len(self.alphas) - 1
        time = timestep.detach().float().clamp(0, last)
        below = int(time)
        kept = torch.lerp(self.alphas[below], self.alphas[min(below + 1, last)], time - below)
        kept = kept.clamp(1e-8, 1 - 1e-8)
        return kept.sqrt(), (1 - kept).sqrt()


_Change = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _clean(kind: str) -> _Change:
    """From input, prediction and both shares to the clean clip."""
    return {
        "epsilon": lambda given, said, clean, noise: (given - noise * said) / clean,
        "v_prediction": lambda given, said, clean, noise: clean * given - noise * said,
        "sample": lambda given, said, clean, noise: said,
    }[kind]


def _prediction(kind: str) -> _Change:
    """From input, clean clip and both shares to what the model would have said."""
    return {
        "epsilon": lambda given, clip, clean, noise: (given - clean * clip) / noise,
        "v_prediction": lambda given, clip, clean, noise: (clean * given - clip) / noise,
        "sample": lambda given, clip, clean, noise: clip,
    }[kind]
