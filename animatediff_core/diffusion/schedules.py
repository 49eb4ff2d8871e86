"""Noise schedules: the betas that the motion module was trained with, in diffusers' schedulers.

Official settings (inference-v1..3.yaml with the diffusers of that time): leading spacing,
steps_offset 1, no clipping of samples, alpha 1 after the last step. Few-step modules are sampled
with trailing spacing, as they were distilled.
"""

from functools import lru_cache
from typing import Literal

import diffusers.schedulers
from diffusers.schedulers import DDPMScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..errors import AnimateDiffError
from ..motion import Betas, MotionConfig
from .samplers import find_sampler, scheduler_names

__all__ = [
    "betas_of",
    "check_scheduler",
    "check_steps",
    "check_timesteps",
    "make_scheduler",
    "scheduler_names",
    "training_scheduler",
]

_LEAST_NOISE, _FEW = 750, 4
"""The timestep at which a clip begins at least, if it has not few steps."""


def make_scheduler(
    name: str,
    config: MotionConfig,
    *,
    prediction_type: str = "epsilon",
    zero_snr: bool = False,
    steps: int | None = None,
) -> SchedulerMixin:
    """A sampler over the noise schedule of a motion module.

    `prediction_type` is the base model's: epsilon, v_prediction or sample. `zero_snr` is for a
    base model that was trained on betas rescaled to end in pure noise (arXiv 2305.08891): the
    sampler's are rescaled too, and its steps begin at the very last, which is that noise. So does
    the one step of `steps` 1, which would begin at the first of all.
    """
    check_scheduler(name, config, prediction_type=prediction_type, zero_snr=zero_snr)
    sampler = find_sampler(name)
    settings: dict[str, object] = {}
    if sampler.steps_chosen:
        settings |= {"timestep_spacing": config.timestep_spacing, "steps_offset": 1}
    if sampler.steps_chosen and (zero_snr or steps == 1):
        settings["timestep_spacing"] = "trailing"
    if zero_snr:
        settings["rescale_betas_zero_snr"] = True
    kind = getattr(diffusers.schedulers, sampler.scheduler)
    settings |= sampler.settings
    return kind(**betas_of(config.betas), prediction_type=prediction_type, **settings)


def check_scheduler(
    name: str,
    config: MotionConfig,
    *,
    prediction_type: str = "epsilon",
    zero_snr: bool = False,
) -> None:
    """Raise what `make_scheduler` would raise, without building one."""
    sampler = find_sampler(name)
    why = None
    if zero_snr and not sampler.zero_snr:
        why = "does not run on a base model whose noise ends in zero SNR; use ddim"
    elif prediction_type == "sample" and not sampler.predicts_sample:
        why = "does not run on a base model that predicts the sample; use ddim"
    elif config.timestep_spacing != "leading" and not sampler.steps_chosen:
        why = "cannot take the few steps that the motion module was made for; use euler"
    if why:
        raise AnimateDiffError(f"scheduler {name} {why}")


def check_timesteps(name: str, config: MotionConfig, steps: int) -> None:
    """Raise if so many steps, spaced as the motion module was trained, do not begin near the noise
    of the schedule's end. Leading spacing divides its 1,000 steps in whole numbers: 600 begin at
    600."""
    spacing = config.timestep_spacing
    taken = steps <= find_sampler(name).most_steps  # else check_steps fails
    if taken and not _begin_in_noise(name, spacing, steps):
        fewer = (n for part in range(1, 1000) for n in (1000 // part, 1000 // part - 1))
        fits = next(n for n in fewer if n < steps and _begin_in_noise(name, spacing, n))
        raise AnimateDiffError(
            f"scheduler {name} cannot space {steps} steps over the motion module's noise schedule; "
            f"use {fits}"
        )


@lru_cache
def _begin_in_noise(name: str, spacing: Literal["leading", "trailing"], steps: int) -> bool:
    config = MotionConfig(timestep_spacing=spacing)
    scheduler = make_scheduler(name, config, steps=steps)
    scheduler.set_timesteps(steps)
    first = float(scheduler.timesteps.max())
    return first < 1000 and (first >= _LEAST_NOISE or steps < _FEW)


def check_steps(name: str, steps: int) -> None:
    """Raise if a sampler cannot take so many steps."""
    sampler = find_sampler(name)
    if steps > (most := sampler.most_steps):
        raise AnimateDiffError(f"scheduler {name} takes {most} steps at most, got {steps}")
    if steps < 2 and not sampler.reaches_zero:
        raise AnimateDiffError(f"scheduler {name} takes 2 steps or more, got {steps}")


def training_scheduler(
    betas: Betas, *, prediction_type: str = "epsilon", zero_snr: bool = False
) -> DDPMScheduler:
    """The forward process that adds noise in training, 1,000 steps; `zero_snr` as above."""
    return DDPMScheduler(
        **betas_of(betas),
        prediction_type=prediction_type,
        clip_sample=False,
        rescale_betas_zero_snr=zero_snr,
    )


def betas_of(betas: Betas) -> dict[str, object]:
    """Arguments of diffusers' schedulers for these betas."""
    start, end, schedule = betas
    return {
        "num_train_timesteps": 1000,
        "beta_start": start,
        "beta_end": end,
        "beta_schedule": schedule,
    }
