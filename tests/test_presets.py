"""Presets: every setting stands in them, and the betas are those of the module that they name."""

import json
from pathlib import Path

import pytest

from animatediff_core import load_motion_module
from animatediff_core.diffusion.schedules import make_scheduler, scheduler_names
from animatediff_core.errors import PromptFileError
from animatediff_core.jobs import (
    Job,
    dump_job,
    job_from_options,
    load_preset,
    parse_prompts,
    preset_names,
)
from animatediff_core.motion import VERSIONS
from animatediff_core.weights.places import bundled_path

LINEAR = (0.00085, 0.012, "linear")
OFFICIAL = {  # facts on the released modules: version, betas, scheduler, steps, guidance
    "sd15-v1": ("v1", LINEAR, "ddim", 25, 7.5),
    "sd15-v2": ("v2", LINEAR, "ddim", 25, 7.5),
    "sd15-v3": ("v3", LINEAR, "ddim", 25, 7.5),
    "sdxl-beta": ("sdxl-beta", (0.00085, 0.02, "scaled_linear"), "euler", 100, 8.5),
    "hotshot-xl": ("hotshot-xl", (0.00085, 0.012, "scaled_linear"), "euler_a", 30, 7.5),
    "animatelcm": ("animatelcm", LINEAR, "lcm", 6, 1.5),
    **{f"lightning-{n}step": ("lightning", LINEAR, "euler", n, 1.0) for n in (1, 2, 4, 8)},
}


def test_every_preset_is_one_of_the_released_models_or_the_bundled_one():
    bundled = [name for name in preset_names() if load_preset(name)["base"].startswith("bundled:")]
    assert "tiny" in bundled
    assert set(preset_names()) == {*OFFICIAL, *bundled}


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_names_everything(name):
    preset = load_preset(name)
    assert {"about", "base", "motion", "scheduler", "betas", "steps", "guidance_scale", "width",
            "height", "frames"} <= preset.keys()  # fmt: skip
    assert preset["scheduler"] in scheduler_names()
    (job,) = job_from_options({"prompt": "a", "preset": name})
    assert job.betas == tuple(preset["betas"])


@pytest.mark.parametrize("name", OFFICIAL)
def test_betas_and_settings_are_those_of_the_released_module(name):
    version, betas, scheduler, steps, guidance = OFFICIAL[name]
    preset = load_preset(name)
    assert tuple(preset["betas"]) == betas == VERSIONS[version].betas
    assert (preset["scheduler"], preset["steps"], preset["guidance_scale"]) == (
        scheduler, steps, guidance,
    )  # fmt: skip
    assert preset["frames"] <= VERSIONS[version].max_frames
    assert preset.get("motion_version", version) == version
    gone = "runwayml/"  # removed from the hub
    assert not any(str(preset[key]).startswith(gone) for key in ("base", "motion"))


@pytest.mark.parametrize("name", sorted(set(preset_names()) - OFFICIAL.keys()))
def test_a_bundled_presets_betas_are_its_modules(name):
    preset = load_preset(name)
    config = load_motion_module(bundled_path(preset["motion"])).config
    assert tuple(preset["betas"]) == config.betas


def test_animatelcms_sampler_takes_its_steps_from_a_hundred():
    preset = load_preset("animatelcm")
    scheduler = make_scheduler(preset["scheduler"], VERSIONS["animatelcm"])
    assert scheduler.config.original_inference_steps == 100


def jobs(text: str, **overrides: object) -> list[Job]:
    return parse_prompts(text, "f.yaml", Path(), overrides=overrides)


def test_betas_and_prediction_type_of_a_job_come_back_from_its_sidecar():
    (job,) = jobs(
        "prediction_type: v_prediction\n"
        "jobs: [{prompt: a, seed: 1, betas: [0.001, 0.02, scaled_linear]}]"
    )
    assert job.betas == (0.001, 0.02, "scaled_linear")
    assert job.prediction_type == "v_prediction"
    assert jobs(dump_job(job)) == [job]
    (plain,) = jobs("base: x\njobs: [{prompt: a, seed: 1}]")
    assert (plain.betas, plain.prediction_type) == (None, None)
    assert jobs(dump_job(plain)) == [plain]


def test_another_motion_module_does_not_take_the_presets_betas_and_version():
    text = "preset: animatelcm\njobs: [{prompt: a%s}]"
    (own,) = jobs(text % "")
    assert (own.betas, own.motion_version) == (LINEAR, "animatelcm")
    for other in (
        jobs(text % ", motion: mine.ckpt"),
        jobs(text % "", motion="mine.ckpt"),
        job_from_options({"prompt": "a", "preset": "animatelcm", "motion": "mine.ckpt"}),
    ):
        assert (other[0].betas, other[0].motion_version) == (None, None)
    (said,) = jobs("motion_version: v1\njobs: [{prompt: a, motion: mine.ckpt}]")
    assert said.motion_version == "v1"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "betas: linear",
            r"jobs\[0\]: betas: must be a list of 3: a number; a number; .* or sq.*, got",
        ),
        ("betas: [0.1, 0.2]", "betas: must be a list of 3"),
        ("betas: [a, 0.2, linear]", r"betas\[0\]: must be a number, got 'a'"),
        ("betas: [0.1, 0.2, cosine]", r"betas\[2\]: must be linear, scaled_linear or"),
        ("betas: [0.2, 0.1, linear]", "0 < start <= end < 1"),
        (
            "prediction_type: noise",
            "prediction_type: must be epsilon, v_prediction or sample, got 'noise'",
        ),
        ("prediction_type: 3", "prediction_type: must be epsilon, v_prediction or sample, got 3"),
        ("prediction: epsilon", "unknown key; did you mean prediction_type"),
    ],
)
def test_wrong_values_are_told_what_and_where(key, message):
    with pytest.raises(PromptFileError, match=message):
        jobs(f"jobs: [{{prompt: a, {key}}}]")


def test_inspect_shows_every_setting_of_a_preset(asked):
    shown = asked("inspect", "--presets").stdout
    assert [line.partition(":")[0] for line in shown.splitlines()] == preset_names()
    (slim,) = (line for line in shown.splitlines() if line.startswith("tiny-slim: "))
    assert "lora bundled:tiny/slim.safetensors:1;" in slim
    records = asked("inspect", "--presets", "--json").stdout.splitlines()
    assert [json.loads(record)["name"] for record in records] == preset_names()
    line = next(line for line in shown.splitlines() if line.startswith("sdxl-beta: "))
    for part in ("base stabilityai/stable-diffusion-xl-base-1.0", "scheduler euler",
                 "betas scaled_linear 0.00085 to 0.02", "100 steps", "guidance 8.5",
                 "16 frames of 1024 x 1024"):  # fmt: skip
        assert part in line
