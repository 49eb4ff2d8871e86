"""Samplers: their names, the official steps, and answers that are known beforehand."""

import importlib.util

import pytest
import torch
from conftest import new_motion, new_unet

from animatediff_core import denoise, inflate, make_scheduler
from animatediff_core.diffusion import samplers
from animatediff_core.diffusion.noise import seeded, step_noise
from animatediff_core.diffusion.samplers import SAMPLERS, plain_name
from animatediff_core.diffusion.schedules import (
    check_scheduler,
    check_steps,
    check_timesteps,
    scheduler_names,
)
from animatediff_core.errors import AnimateDiffError
from animatediff_core.motion import VERSIONS

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
HEADS = {
    "ddim": ([831, 665, 499, 333, 167, 1], (8.591, 0.8435, 0.2993)),
    "ddpm": ([831, 665, 499, 333, 167, 1], (6.06, -0.1247, 0.1513)),
    "pndm": ([831, 665, 665, 499, 333, 167, 1], (7.313, 0.8842, None)),
    "euler": ([831, 665, 499, 333, 167, 1], (0.3013, -0.01217, 0.1541)),
    "euler_a": ([831, 665, 499, 333, 167, 1], (0.1782, -0.195, None)),
    "heun": ([831, 665, 665, 499, 499, 333, 333, 167, 167, 1, 1], (0.269, 0.02115, 0.1166)),
    "lms": ([831, 665, 499, 333, 167, 1], (0.2914, 0.006423, 0.1523)),
    "dpm_2": ([831, 751, 665, 584, 499, 416, 333, 243, 167, 23, 1], (0.2733, 0.02337, None)),
    "dpm_2_a": ([831, 665, 665, 499, 499, 333, 333, 167, 167, 1, 1], (-0.006701, -0.338, None)),
    "dpmpp_2m": ([853, 711, 569, 427, 285, 143], (8.346, 0.9885, 0.548)),
    "dpmpp_2m_sde": ([853, 711, 569, 427, 285, 143], (4.021, 0.01044, 0.1813)),
    "dpmpp_3m": ([853, 711, 569, 427, 285, 143], (8.36, 1.006, 0.5475)),
    "dpmpp_3m_sde": ([853, 711, 569, 427, 285, 143], (4.066, 0.03824, 0.1862)),
    "dpmpp_2s": ([999, 832, 666, 500, 333, 166], (16.68, 0.8314, 0.5833)),
    "dpmpp_2s_sde": ([999, 832, 666, 500, 333, 166], (11.07, 0.1559, 0.2315)),
    "unipc": ([853, 711, 569, 427, 285, 143], (8.193, 1.01, 0.5467)),
    "deis": ([853, 711, 569, 427, 285, 143], (8.651, 0.989, 0.6121)),
    "sa_solver": ([853, 711, 569, 427, 285, 143], (1.373, 0.1055, 0.2088)),
    "lcm": ([999, 839, 669, 499, 339, 169], (7.272, 0.05079, 0.1838)),
    "tcd": ([999, 839, 679, 499, 339, 179], (12.56, -0.09426, 0.1505)),
    "euler_karras": ([831, 661, 433, 177, 31, 1], (0.3095, -0.01605, 0.1513)),
    "euler_exponential": ([831, 592, 308, 92, 15, 1], (0.3179, -0.0175, 0.1506)),
    "euler_beta": ([831, 805, 739, 613, 339, 1], (0.3026, -0.03584, 0.1546)),
    "heun_karras": ([831, 661, 661, 433, 433, 177, 177, 31, 31, 1, 1], (0.2657, 0.03237, 0.1456)),
    "lms_karras": ([831, 661, 433, 177, 31, 1], (0.2967, -0.002166, 0.1491)),
    "dpm_2_karras": ([831, 749, 661, 551, 434, 296, 178, 81, 31, 7, 1], (0.2678, 0.0243, None)),
    "dpm_2_a_karras": ([831, 661, 661, 433, 434, 177, 178, 31, 31, 1, 1], (0.08803, -0.2191, None)),
    "dpmpp_2m_karras": ([999, 834, 602, 277, 39, 0], (12.4, 1.378, 0.209)),
    "dpmpp_2m_exponential": ([998, 747, 419, 115, 12, 0], (14.81, 1.235, 0.2043)),
    "dpmpp_2m_beta": ([998, 977, 921, 816, 578, 0], (4.14, 0.8653, 0.3473)),
    "unipc_karras": ([999, 834, 602, 277, 39, 0], (11.99, 1.431, 0.2045)),
    "deis_karras": ([999, 834, 602, 277, 39, 0], (16.28, 1.036, 0.4179)),
    "dpmpp_2s_karras": ([999, 834, 602, 277, 39, 0], (17.6, 0.8798, 0.2525)),
    "sa_solver_karras": ([999, 834, 602, 277, 39, 0], (-55.2, -0.08863, -0.08295)),
}  # fmt: skip
"""Six steps with diffusers 0.42: the timesteps, and where `ended` ends if the model predicts
epsilon, v_prediction or the sample."""


def ended(name: str, kind: str) -> float:
    """The last value of eight after six steps with a model that answers 0.3 x + 0.1."""
    scheduler = make_scheduler(name, VERSIONS["v2"], prediction_type=kind)
    scheduler.set_timesteps(6)
    x = torch.linspace(-1, 2, 8).view(1, 4, 1, 1, 2)
    extra = step_noise(scheduler, x, seeded(1))
    for step in scheduler.timesteps:
        answer = 0.3 * scheduler.scale_model_input(x, step) + 0.1
        x = scheduler.step(answer, step, x, **extra, return_dict=False)[0]
    return float(x.flatten()[-1])


@pytest.mark.parametrize("name", HEADS)
def test_every_sampler_takes_its_steps_and_ends_where_it_should(name):
    steps, ends = HEADS[name]
    scheduler = make_scheduler(name, VERSIONS["v2"])
    scheduler.set_timesteps(6)
    assert scheduler.timesteps.int().tolist() == steps
    for kind, end in zip(("epsilon", "v_prediction", "sample"), ends, strict=True):
        if end is None:
            with pytest.raises(AnimateDiffError, match=f"{name} does not run on .* use ddim"):
                make_scheduler(name, VERSIONS["v2"], prediction_type=kind)
        else:
            assert ended(name, kind) == pytest.approx(end, rel=2e-3), kind


def test_every_sampler_is_in_the_table():
    assert set(HERE) <= HEADS.keys() | {"dpmpp_sde"}
    spread = {name.rpartition("_")[2] for name in HEADS if name not in SAMPLERS}
    assert spread == set(samplers.SPACINGS)


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


@pytest.mark.parametrize("version", VERSIONS)
def test_betas_and_order_are_those_that_were_asked_for(version):
    config = make_scheduler("ddim", VERSIONS[version]).config
    assert (config.beta_start, config.beta_end, config.beta_schedule) == VERSIONS[version].betas
    assert config.num_train_timesteps == 1000
    if VERSIONS[version].timestep_spacing == "leading":
        assert make_scheduler("dpmpp_2s", VERSIONS[version]).config.lower_order_final is True


def test_few_step_modules_are_sampled_with_trailing_steps():
    scheduler = make_scheduler("euler", VERSIONS["lightning"])
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*HERE, *SPREAD])
def test_a_model_that_knows_the_clip_leads_every_sampler_to_it(name):
    clip = torch.randn(1, 4, 2, 3, 3, generator=seeded(5))
    found, _ = sampled(name, lambda *_: clip, steps=6)
    assert (found - clip).abs().max() < EXACT.get(name, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
@pytest.mark.parametrize("name", [name for name in HERE if not name.startswith("dpm_2")])
def test_whatever_the_base_model_predicts(name, kind):
    if kind == "sample" and not SAMPLERS[name].predicts_sample:
        pytest.skip("refused, as the table says")
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


@pytest.mark.slow
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


@pytest.mark.slow
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
        ("DPM++ 2M Karras", "dpmpp_2m_karras"), ("Euler a", "euler_a"), ("PLMS", "pndm"),
        ("DPM++ 3M SDE Exponential", "dpmpp_3m_sde_exponential"), ("DPM2 a", "dpm_2_a"),
        ("dpm++_2m", "dpmpp_2m"), ("dpmpp_2m_sde_gpu", "dpmpp_2m_sde"), ("uni_pc", "unipc"),
        ("euler_ancestral", "euler_a"), ("dpm_2_ancestral", "dpm_2_a"),
        ("EulerDiscreteScheduler", "euler"), ("DPMSolverMultistepScheduler", "dpmpp_2m"),
        ("KDPM2AncestralDiscreteScheduler", "dpm_2_a"), ("DDIMScheduler", "ddim"),
    ],
)  # fmt: skip
def test_other_tools_names_are_known(name, same):
    assert plain_name(name) == same
    assert same in scheduler_names()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("dimm", {}, "no scheduler 'dimm'; did you mean ddim?"),
        ("x", {}, "no scheduler 'x'; there are ddim, .* most of them also with _karras"),
        ("dpm++_2", {}, "did you mean dpmpp_2s?"),
        ("DPM++ 2M SDE Heun", {}, "did you mean dpmpp_2m_sde?"),
        ("heunpp2", {}, "did you mean heun?"),
        ("Euler a Karras", {}, "euler_a has no form karras; use euler_a"),
        ("dpmpp_2m_karas", {}, "did you mean dpmpp_2m_karras?"),
        ("ddim_karras", {}, "ddim has no form karras; use ddim"),
        ("k_euler_a", {}, "euler_a has no form karras; use euler_a"),
        ("k_lms_karras", {}, "no scheduler 'k_lms_karras'"),
        ("pndm", {"zero_snr": True}, "pndm does not run on .* zero SNR; use ddim"),
        ("heun", {"zero_snr": True}, "heun does not run on .* zero SNR; use ddim"),
        ("dpm_2", {"prediction_type": "sample"}, "dpm_2 does not run on .* sample; use ddim"),
    ],
)
def test_what_a_sampler_cannot_do_is_refused(name, settings, message):
    with pytest.raises(AnimateDiffError, match=message):
        check_scheduler(name, VERSIONS["v2"], **settings)


@pytest.mark.parametrize(
    ("name", "steps", "message"),
    [
        ("lcm", 101, "lcm takes 100 steps at most, got 101"),
        ("tcd", 51, "tcd takes 50 steps at most, got 51"),
        ("ddim", 1001, "ddim takes 1000 steps at most"),
        ("deis", 1, "deis takes 2 steps or more, got 1"),
    ],
)
def test_steps_that_a_sampler_cannot_take_are_refused(name, steps, message):
    with pytest.raises(AnimateDiffError, match=message):
        check_steps(name, steps)


@pytest.mark.parametrize(
    ("name", "steps"),
    [("lcm", 100), ("tcd", 50), ("ddim", 1000), ("deis", 2), ("sa_solver", 2), ("euler", 1)],
)
def test_the_least_and_the_most_steps_are_taken(name, steps):
    check_steps(name, steps)


@pytest.mark.parametrize(
    ("name", "steps", "fits"),
    [("ddim", 1000, 999), ("ddim", 600, 500), ("ddim", 334, 333), ("euler", 501, 500),
     ("dpmpp_2m", 1000, 499), ("dpmpp_2m", 500, 499), ("unipc", 334, 332)],
)  # fmt: skip
def test_steps_that_would_not_begin_in_noise_are_refused(name, steps, fits):
    with pytest.raises(AnimateDiffError, match=f"{name} cannot space {steps} .*; use {fits}$"):
        check_timesteps(name, VERSIONS["v2"], steps)
    check_timesteps(name, VERSIONS["v2"], fits)
    check_timesteps("lcm", VERSIONS["v2"], 10**9)  # which check_steps refuses


@pytest.mark.parametrize("name", ["ddim", "ddpm", "pndm", "euler", "heun", "dpmpp_2m", "unipc"])
def test_every_number_of_steps_that_is_taken_stays_within_the_schedule(name):
    for steps in (1, 2, 3, 4, 25, 150, 300):
        check_timesteps(name, VERSIONS["v2"], steps)
        scheduler = make_scheduler(name, VERSIONS["v2"], steps=steps)
        scheduler.set_timesteps(steps)
        first, last = scheduler.timesteps[0], scheduler.timesteps[-1]
        assert 500 <= first <= 999
        assert 0 <= last <= first


def test_one_step_begins_in_pure_noise():
    scheduler = make_scheduler("ddim", VERSIONS["v2"], steps=1)
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [999]


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
