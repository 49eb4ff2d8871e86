"""x0 caching: skipped steps reuse the last predicted x0 instead of a call of the UNet.

From one step to the next the noisy latents change much, the predicted x0 changes little. A skipped
step turns the cached x0 into the prediction that the scheduler expects. The model always runs in
the first steps, which decide the motion, and in one of the last two.

Legend: b batch, f frames, c channels, h w latent size.
"""

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

_SPANS = {
    1: ((0.6, 0.85, 2),),
    2: ((0.375, 0.8, 2),),
    3: ((0.25, 0.375, 2), (0.375, 1.0, 3)),
}
"""By level: (first share of the steps, last share, n): between them the model runs in every n-th
step. Chosen on the bundled model at 16 steps, by the distance from the exact clip."""
_ALWAYS = 2
"""First steps in which the model always runs."""
_FEW = 8
"""With more steps than this the last one may skip the model."""


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
    """Whether the last step can reuse the x0 of the step before."""
    return steps > _FEW and runs(level, steps - 2, steps)


class X0Cache:
    """The x0 of the last step in which the model ran."""

    def __init__(self, level: int, scheduler: SchedulerMixin) -> None:
        self.level = level
        self.alphas: Tensor = scheduler.alphas_cumprod.cpu()
        self.prediction_type = str(scheduler.config.prediction_type)
        self.x0: Tensor | None = None
        """b c f h w."""

    def predict(
        self, model_input: Tensor, timestep: Tensor, step: int, steps: int
    ) -> Tensor | None:
        """The prediction from the cached x0, or None if the model must run. The timestep is on the
        CPU, here and below."""
        if self.x0 is None or runs(self.level, step, steps):
            return None
        signal, noise = self._rates(timestep)
        if self.prediction_type == "epsilon":
            return (model_input - signal * self.x0) / noise
        if self.prediction_type == "v_prediction":
            return (signal * model_input - self.x0) / noise
        return self.x0

    def store(self, model_input: Tensor, prediction: Tensor, timestep: Tensor) -> None:
        """Cache the x0 of a prediction of the model."""
        if not self.level:
            return
        signal, noise = self._rates(timestep)
        self.x0 = prediction
        if self.prediction_type == "epsilon":
            self.x0 = (model_input - noise * prediction) / signal
        elif self.prediction_type == "v_prediction":
            self.x0 = signal * model_input - noise * prediction

    def _rates(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Signal rate and noise rate of the model's input; linear between two timesteps."""
        last = len(self.alphas) - 1
        time = timestep.detach().float().clamp(0, last)
        below = int(time)
        alpha = torch.lerp(self.alphas[below], self.alphas[min(below + 1, last)], time - below)
        alpha = alpha.clamp(1e-8, 1 - 1e-8)
        return alpha.sqrt(), (1 - alpha).sqrt()
