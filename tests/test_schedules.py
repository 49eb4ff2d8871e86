"""Noise schedules: the official steps and betas of each generation of modules."""

import pytest
import torch

from animatediff_core import make_scheduler
from animatediff_core.diffusion.schedules import scheduler_names
from animatediff_core.errors import AnimateDiffError
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


@pytest.mark.parametrize("name", [name for name in scheduler_names() if name != "pndm"])
def test_zero_snr_begins_at_pure_noise_and_steps_on(name):
    scheduler = make_scheduler(
        name, VERSIONS["sdxl-beta"], prediction_type="v_prediction", zero_snr=True
    )
    scheduler.set_timesteps(4)
    assert int(scheduler.timesteps[0]) >= (995 if "karras" in name else 999)  # sigmas, rounded
    assert float(scheduler.alphas_cumprod[-1]) < 1e-7
    latents = torch.ones(1, 4, 2, 2, 2)
    for step in scheduler.timesteps:
        latents = scheduler.step(torch.zeros_like(latents), step, latents).prev_sample
    assert torch.isfinite(latents).all()


@pytest.mark.parametrize("name", scheduler_names())
def test_what_a_sampler_cannot_do_is_refused(name):
    told = {"pndm": "use ddim", "euler_a": "use euler"}.get(name)
    if told is not None:
        with pytest.raises(AnimateDiffError, match=f"{name} does not run on .* sample; {told}"):
            make_scheduler(name, VERSIONS["v2"], prediction_type="sample")
        return
    scheduler = make_scheduler(name, VERSIONS["v2"], prediction_type="sample")
    scheduler.set_timesteps(4)
    latents = torch.ones(1, 4, 2, 2, 2)
    for step in scheduler.timesteps:
        latents = scheduler.step(torch.zeros_like(latents), step, latents).prev_sample
    assert torch.isfinite(latents).all()


def test_pndm_is_refused_for_zero_snr():
    with pytest.raises(AnimateDiffError, match="pndm does not run on .* zero SNR; use ddim"):
        make_scheduler("pndm", VERSIONS["v2"], prediction_type="v_prediction", zero_snr=True)
