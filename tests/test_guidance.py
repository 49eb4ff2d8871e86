"""Guidance: its scale over the steps, its rescaling, and when the negative half is left out."""

import pytest
import torch
from conftest import new_motion, new_unet

from animatediff_core import denoise, inflate, make_scheduler
from animatediff_core.diffusion.guidance import Guidance, guide


def scales(guidance: Guidance, steps: int) -> list[float]:
    return [guidance.at(step, steps) for step in range(steps)]


def test_a_schedule_goes_through_its_points_from_the_first_step_to_the_last():
    assert scales(Guidance(schedule={0.0: 8.0, 1.0: 2.0}), 4) == [8, 6, 4, 2]
    assert scales(Guidance(schedule={0.25: 3.0, 0.5: 5.0}), 5) == [3, 3, 5, 5, 5]
    assert scales(Guidance(schedule={0.5: 4.0}), 3) == [4, 4, 4]
    assert scales(Guidance(scale=6.0), 1) == [6]


def test_outside_its_interval_guidance_is_off():
    assert scales(Guidance(scale=9.0, interval=(0.2, 0.5)), 11) == [1] * 2 + [9] * 4 + [1] * 5
    third = Guidance(scale=9.0, interval=(0.3, 0.7))  # 0.1 * 3 is not 0.3 in binary
    assert scales(third, 11).count(9) == 5
    assert scales(Guidance(scale=9.0, interval=(0.1 * 3, 0.7)), 11).count(9) == 5


def test_rescaling_brings_each_clips_spread_back():
    torch.manual_seed(0)
    predicted, without = torch.randn(2, 4, 3, 8, 6), torch.randn(2, 4, 3, 8, 6)
    plain = guide(predicted, without, 7.5)
    assert torch.equal(plain, without + 7.5 * (predicted - without))
    full = guide(predicted, without, 7.5, 1.0)
    assert torch.allclose(full.flatten(1).std(1), predicted.flatten(1).std(1))
    half = guide(predicted, without, 7.5, 0.5)
    assert torch.allclose(half, (plain + full) / 2, atol=1e-5)
    alone = guide(predicted[:1], without[:1], 7.5, 0.5)
    assert torch.allclose(alone, half[:1])  # a clip's guidance knows nothing of its batch mates


@pytest.fixture(scope="module")
def animated():
    return inflate(new_unet(), new_motion())


def sampled(animated, **settings):
    """The latents after five steps, and how often the UNet was called."""
    calls = []
    handle = animated.unet.register_forward_hook(lambda *_: calls.append(1))
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 3, 8, 6, generator=generator)
    text, negative = torch.randn(2, 1, 5, 16, generator=generator)
    scheduler = make_scheduler("ddim", animated.motion.config)
    try:
        return denoise(animated, scheduler, latents, text, negative, steps=5, **settings), len(
            calls
        )
    finally:
        handle.remove()


def test_the_negative_half_is_computed_only_where_guidance_acts(animated):
    plain, calls = sampled(animated, guidance_scale=5.0)
    assert calls == 10
    same, calls = sampled(animated, guidance=Guidance(schedule={0.0: 5.0, 1.0: 5.0}))
    assert torch.equal(plain, same)
    assert calls == 10
    part, calls = sampled(animated, guidance=Guidance(scale=5.0, interval=(0.25, 0.75)))
    assert calls == 8
    assert not torch.equal(part, plain)
    _, calls = sampled(animated, guidance_scale=1.01)
    assert calls == 10
    late = {"start": 2, "source": torch.zeros(1, 4, 3, 8, 6)}
    _, calls = sampled(animated, guidance=Guidance(scale=5.0, interval=(0.0, 0.4)), **late)
    assert calls == 3  # the shares of the whole schedule: 0.5, 0.75 and 1
    off, calls = sampled(animated, guidance_scale=1.0)
    assert calls == 5
    same, calls = sampled(animated, guidance=Guidance(schedule={0.0: 1.0, 1.0: 0.5}))
    assert torch.equal(off, same)
    assert calls == 5
    rescaled, _ = sampled(animated, guidance=Guidance(scale=5.0, rescale=0.7))
    assert not torch.allclose(rescaled, plain)
