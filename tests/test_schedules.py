"""Noise schedules: the official steps and betas of each generation of modules."""

import pytest
import torch

from animatediff_core import make_scheduler
from animatediff_core.diffusion.schedules import scheduler_names
from animatediff_core.motion import VERSIONS


def test_ddim_takes_the_official_steps():
    scheduler = make_scheduler("ddim", VERSIONS["v2"])
    scheduler.set_timesteps(25)
    assert scheduler.timesteps[:2].tolist() == [961, 921]
    assert scheduler.timesteps[-2:].tolist() == [41, 1]
    assert float(scheduler.alphas_cumprod[-1]) == pytest.approx(0.00158, abs=1e-5)
    assert float(scheduler.final_alpha_cumprod) == 1.0


def test_few_step_modules_are_sampled_with_trailing_steps():
    scheduler = make_scheduler("euler", VERSIONS["lightning"])
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249]


@pytest.mark.parametrize("name", scheduler_names())
def test_every_scheduler_steps_over_clips(name):
    scheduler = make_scheduler(name, VERSIONS["sdxl-beta"], prediction_type="v_prediction")
    scheduler.set_timesteps(4)
    latents = torch.ones(1, 4, 2, 2, 2)
    for step in scheduler.timesteps:
        latents = scheduler.step(torch.zeros_like(latents), step, latents).prev_sample
    assert torch.isfinite(latents).all()
