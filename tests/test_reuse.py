"""fast: steps that use the last clean clip again, instead of the model."""

import pytest
import torch
from conftest import new_motion, new_unet

from animatediff_core import denoise, inflate, make_scheduler
from animatediff_core.diffusion.x0_cache import X0Cache, runs

LEVELS = (1, 2, 3)


class Counted:
    """A model that counts its calls."""

    def __init__(self, animated):
        self.animated, self.unet, self.calls = animated, animated.unet, 0

    def __call__(self, *given):
        self.calls += 1
        return self.animated(*given)


@pytest.fixture(scope="module")
def animated():
    return inflate(new_unet(), new_motion())


def clip(animated, fast, scheduler="ddim", kind="epsilon", steps=16):
    model = Counted(animated)
    torch.manual_seed(4)
    noise, text, away = torch.randn(1, 4, 3, 8, 6), torch.randn(1, 5, 16), torch.randn(1, 5, 16)
    sampler = make_scheduler(scheduler, animated.motion.config, prediction_type=kind)
    out = denoise(
        model, sampler, noise, text, away, steps=steps, fast=fast, guidance_scale=3.0,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    return out, model.calls


def test_the_first_step_and_one_of_the_last_two_run_and_higher_levels_run_less():
    for steps in (1, 2, 4, 16, 25, 50):
        counts = [sum(runs(level, i, steps) for i in range(steps)) for level in (0, *LEVELS)]
        assert counts[0] == steps
        assert counts == sorted(counts, reverse=True)
        assert all(runs(level, 0, steps) for level in LEVELS)
        last = [[runs(level, i, steps) for i in (steps - 1, steps - 2)] for level in LEVELS]
        assert all(ends[0] for ends in last[:2])
        assert last[2][0] or (last[2][1] and steps > 8)
    assert [sum(runs(level, i, 25) for i in range(25)) for level in LEVELS] == [22, 19, 12]


def test_exact_is_the_default_and_a_level_saves_the_calls_that_it_says(animated):
    exact, calls = clip(animated, 0)
    assert calls == 2 * 16
    distances = []
    for level in LEVELS:
        made, calls = clip(animated, level)
        assert calls == 2 * sum(runs(level, i, 16) for i in range(16))
        distances.append(float((made - exact).norm() / exact.norm()))
    assert 0 < distances[0] < distances[-1] < 0.5


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_what_was_said_of_a_clip_is_found_again_at_every_noise(animated, kind):
    scheduler = make_scheduler("ddim", animated.motion.config, prediction_type=kind)
    scheduler.set_timesteps(10)
    clean, noise = torch.randn(1, 4, 2, 8, 6), torch.randn(1, 4, 2, 8, 6)
    says = {
        "epsilon": lambda a, s: noise, "v_prediction": lambda a, s: a * noise - s * clean,
        "sample": lambda a, s: clean,
    }[kind]  # fmt: skip
    cache = X0Cache(3, scheduler)
    for step, timestep in enumerate(scheduler.timesteps):
        kept = scheduler.alphas_cumprod[timestep]
        shares = (kept.sqrt(), (1 - kept).sqrt())
        given = shares[0] * clean + shares[1] * noise
        said = cache.predict(given, timestep, step, 10)
        assert (said is None) == runs(3, step, 10)
        if said is None:
            cache.store(given, says(*shares), timestep)
        else:
            assert torch.allclose(said, says(*shares), atol=2e-4)


@pytest.mark.parametrize("scheduler", ["euler_a", "dpmpp_2m_karras", "heun", "lcm"])
def test_other_schedulers_go_on_from_it(animated, scheduler):
    exact, _ = clip(animated, 0, scheduler)
    made, _ = clip(animated, 1, scheduler)
    assert (made - exact).norm() / exact.norm() < 0.3


def test_the_command_takes_it_and_the_sidecar_says_it(asked, tmp_path):
    small = ("--prompt", "a red circle", "--steps", 8, "-W", 32, "-H", 32, "-L", 4, "--seed", 1)
    made = asked("generate", *small, "--fast", 2, "-o", "out")
    assert made.exit_code == 0, made.stderr
    assert "fast: 2" in next((tmp_path / "out").glob("*.yaml")).read_text()
    wrong = asked("generate", *small, "--set", "fast=4", "-o", "out")
    assert wrong.exit_code == 2
    assert "fast: must be a whole number from 0 to 3, got 4" in wrong.stderr
