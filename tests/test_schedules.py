"""Samplers: their names, the official steps, and answers that are known beforehand."""

import importlib.util

import pytest
import torch
from conftest import new_motion, new_unet

from animatediff_core import denoise, inflate, make_scheduler
from animatediff_core.diffusion import samplers
from animatediff_core.diffusion.noise import seeded, step_noise
from animatediff_core.diffusion.samplers import SAMPLERS, plain_name
from animatediff_core.diffusion.schedules import check_scheduler, scheduler_names
from animatediff_core.errors import AnimateDiffError
from animatediff_core.motion import VERSIONS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers on NumPy 2

TORCHSDE = importlib.util.find_spec("torchsde") is not None
HERE = [name for name, one in SAMPLERS.items() if one.package != "torchsde" or TORCHSDE]
"""Samplers that can run on this machine."""
SPREAD = ["euler_karras", "heun_exponential", "lms_karras", "dpmpp_2m_karras", "unipc_beta",
          "dpmpp_3m_sde_exponential", "dpmpp_2s_karras", "deis_karras"]  # fmt: skip
"""Every way of spreading the steps, and both implementations of it."""
EXACT = {"deis": 0.1, "sa_solver": 0.15, "tcd": 0.15, "deis_karras": 0.1}
"""How near those come to the answer that end above zero noise."""
STOCHASTIC = {"ddpm", "euler_a", "dpm_2_a", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_2s_sde",
              "dpmpp_sde", "sa_solver", "lcm", "tcd"}  # fmt: skip


def sampled(name: str, predict, *, steps: int, kind="epsilon", size=3):
    """From noise to a clip with `predict`, which is given noisy clips and their signal and noise.

    Returns the clip, and what the first step was given with its signal and noise.
    """
    scheduler = make_scheduler(name, VERSIONS["v2"], prediction_type=kind)
    scheduler.set_timesteps(steps)
    generator = seeded(0)
    x = torch.randn(1, 4, 2, size, size, generator=generator) * scheduler.init_noise_sigma
    extra = step_noise(scheduler, x, generator)
    ratio = (scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)).double().log()
    first = None
    for step in scheduler.timesteps:
        below = min(int(step), 998)  # noise levels between two timesteps: linear in the log
        level = torch.lerp(ratio[below], ratio[below + 1], float(step) - below).float()
        signal, noise = level.sigmoid().sqrt(), (-level).sigmoid().sqrt()
        given = scheduler.scale_model_input(x, step)
        first = first or (given, signal, noise)
        clip = predict(given, signal, noise)
        wanted = {
            "epsilon": (given - signal * clip) / noise,
            "v_prediction": (signal * given - clip) / noise,
            "sample": clip,
        }[kind]
        x = scheduler.step(wanted, step, x, **extra, return_dict=False)[0]
    return x, first


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


@pytest.mark.parametrize("name", [*HERE, *SPREAD])
def test_a_model_that_knows_the_clip_leads_every_sampler_to_it(name):
    clip = torch.randn(1, 4, 2, 3, 3, generator=seeded(5))
    found, _ = sampled(name, lambda *_: clip, steps=6)
    assert (found - clip).abs().max() < EXACT.get(name, 1e-4)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
@pytest.mark.parametrize("name", [name for name in HERE if not name.startswith("dpm_2")])
def test_whatever_the_base_model_predicts(name, kind):
    if kind == "sample" and not SAMPLERS[name].predicts_sample:
        with pytest.raises(AnimateDiffError, match=f"{name} does not run on .* sample; use ddim"):
            make_scheduler(name, VERSIONS["v2"], prediction_type=kind)
        return
    clip = torch.randn(1, 4, 2, 3, 3, generator=seeded(5))
    found, _ = sampled(name, lambda *_: clip, steps=6, kind=kind)
    assert (found - clip).abs().max() < (0.2 if name == "pndm" else EXACT.get(name, 1e-4))


def gaussian(given, signal, noise, spread=0.5):
    """The best guess at clips whose every value is normal, with standard deviation 0.5."""
    return given * signal * spread**2 / (signal**2 * spread**2 + noise**2)


def error(name: str, steps: int) -> float:
    """How far a sampler is from where the probability flow ends for such clips, relative."""
    found, (given, signal, noise) = sampled(name, gaussian, steps=steps, size=8)
    exact = given * 0.5 / (signal**2 * 0.25 + noise**2).sqrt()
    return float((found - exact).norm() / exact.norm())


def test_samplers_of_higher_order_follow_the_flow_closer():
    first = error("euler", 24)
    assert first == pytest.approx(error("ddim", 24), abs=1e-3)  # one and the same method
    assert error("euler", 96) < 0.4 * first < 0.05
    for name in ("heun", "lms", "pndm", "dpm_2", "dpmpp_2m", "dpmpp_3m", "unipc",
                 "deis"):  # fmt: skip
        assert error(name, 24) < 0.9 * first, name
    for name in ("dpmpp_2m_karras", "unipc_karras", "heun_karras", "lms_karras"):
        assert error(name, 24) < 0.15 * first, name
    assert error("dpmpp_2s_karras", 24) < 0.5 * first


@pytest.mark.parametrize("name", sorted(STOCHASTIC & set(HERE)))
def test_samplers_that_add_noise_keep_the_spread_and_their_seed(name):
    found, (given, *_) = sampled(name, gaussian, steps=30, size=24)
    assert float(found.std()) == pytest.approx(0.5, rel=0.4 if name == "lcm" else 0.25)
    assert torch.corrcoef(torch.stack([found.flatten(), given.flatten()]))[0, 1] < 0.9
    again, _ = sampled(name, gaussian, steps=30, size=24)
    assert torch.equal(found, again)


def test_only_those_samplers_take_noise():
    for name in set(HERE) - STOCHASTIC - {"dpm_2"}:
        scheduler = make_scheduler(name, VERSIONS["v2"])
        scheduler.set_timesteps(4)
        x = torch.ones(1, 4, 2, 2, 2)
        ends = []
        for seed in (1, 2):
            scheduler.set_timesteps(4)
            extra = step_noise(scheduler, x, seeded(seed))
            end = x
            for step in scheduler.timesteps:
                end = scheduler.step(
                    0.1 * scheduler.scale_model_input(end, step), step, end, **extra,
                    return_dict=False,
                )[0]  # fmt: skip
            ends.append(end)
        assert torch.equal(*ends), name


@pytest.fixture(scope="module")
def animated():
    return inflate(new_unet(), new_motion())


@pytest.mark.parametrize("name", ["heun", "lms", "dpmpp_2s_karras", "dpmpp_2m_beta"])
def test_samplers_of_several_calls_or_a_memory_run_in_the_loop(animated, name):
    calls = []
    noise = torch.randn(1, 4, 2, 8, 8, generator=seeded(1))
    text = torch.randn(2, 1, 5, 16, generator=seeded(2))
    runs = [
        denoise(
            animated, make_scheduler(name, VERSIONS["v2"]), noise, *text, steps=3,
            guidance_scale=2.0, generator=seeded(3), on_step=lambda *done: calls.append(done),
        )
        for _ in range(2)
    ]  # fmt: skip
    assert torch.isfinite(runs[0]).all()
    assert torch.equal(*runs)
    total = 5 if name == "heun" else 3
    assert calls[:total] == [(done, total) for done in range(1, total + 1)]


def test_steps_that_round_to_one_timestep_do_not_derail_a_sampler(animated):
    scheduler = make_scheduler("dpmpp_2m_beta", VERSIONS["v2"])
    scheduler.set_timesteps(33)
    assert scheduler.timesteps[0] == scheduler.timesteps[1]
    noise = torch.zeros(1, 4, 1, 2, 2)
    text = torch.zeros(2, 1, 5, 16)
    done = []
    denoise(animated, scheduler, noise, *text, steps=33, guidance_scale=1.0,
            on_step=lambda *step: done.append(step))  # fmt: skip
    assert done[-1] == (33, 33)


@pytest.mark.parametrize(
    "name", [name for name in HERE if SAMPLERS[name].zero_snr] + ["dpmpp_2m_karras"]
)
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


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("k_lms", "lms_karras"), ("k_euler", "euler_karras"), ("k_dpm_2", "dpm_2_karras"),
        ("k_dpm_2_a", "dpm_2_a_karras"), ("k_dpmpp_2m", "dpmpp_2m_karras"),
        ("k_dpmpp_sde", "dpmpp_sde_karras"), ("k_dpmpp_2m_sde", "dpmpp_2m_sde_karras"),
        ("k_dpmpp", "dpmpp_2m_karras"), ("dpmpp", "dpmpp_2m"), ("plms", "pndm"),
        ("dpm2_a_karras", "dpm_2_a_karras"), ("euler_a", "euler_a"),
    ],
)  # fmt: skip
def test_other_tools_names_are_known(name, same):
    assert plain_name(name) == same
    assert same in scheduler_names()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("dimm", {}, "no scheduler 'dimm'; there are ddim, .*_karras.*; did you mean ddim?"),
        ("dpmpp_2m_karas", {}, "did you mean dpmpp_2m_karras?"),
        ("ddim_karras", {}, "ddim has no form karras; use ddim"),
        ("k_euler_a", {}, "euler_a has no form karras; use euler_a"),
        ("k_lms_karras", {}, "no scheduler 'k_lms_karras'"),
        ("lcm", {"steps": 101}, "lcm takes 100 steps at most, got 101"),
        ("tcd", {"steps": 51}, "tcd takes 50 steps at most, got 51"),
        ("ddim", {"steps": 1001}, "ddim takes 1000 steps at most"),
        ("deis", {"steps": 1}, "deis takes 2 steps or more, got 1"),
        ("pndm", {"zero_snr": True}, "pndm does not run on .* zero SNR; use ddim"),
        ("heun", {"zero_snr": True}, "heun does not run on .* zero SNR; use ddim"),
        ("dpm_2", {"prediction_type": "sample"}, "dpm_2 does not run on .* sample; use ddim"),
    ],
)
def test_what_a_sampler_cannot_do_is_refused(name, settings, message):
    with pytest.raises(AnimateDiffError, match=message):
        check_scheduler(name, VERSIONS["v2"], **settings)


@pytest.mark.parametrize(
    ("name", "steps"),
    [("lcm", 100), ("tcd", 50), ("ddim", 1000), ("deis", 2), ("sa_solver", 2), ("euler", 1)],
)
def test_the_least_and_the_most_steps_are_taken(name, steps):
    check_scheduler(name, VERSIONS["v2"], steps=steps)


def test_few_step_modules_refuse_samplers_that_choose_their_steps_themselves():
    with pytest.raises(AnimateDiffError, match="dpmpp_2s cannot take the few steps .* use euler"):
        check_scheduler("dpmpp_2s", VERSIONS["lightning"])


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(samplers, "find_spec", lambda name: None)
    for name, package in {"lms": "scipy", "dpmpp_sde": "torchsde", "euler_beta": "scipy",
                          "k_dpmpp_sde": "torchsde"}.items():  # fmt: skip
        with pytest.raises(AnimateDiffError, match=f"{name} needs .* pip install {package}"):
            make_scheduler(name, VERSIONS["v2"])
    check_scheduler("euler_karras", VERSIONS["v2"])
