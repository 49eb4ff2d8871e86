"""Prompt files: what they give, and what is said of a wrong one."""

from pathlib import Path

import pytest

from animatediff_core.errors import PromptFileError
from animatediff_core.jobs import (
    Job,
    defaults_of,
    dump_job,
    job_from_options,
    load_preset,
    load_prompt_file,
    parse_prompts,
    preset_names,
)

ROOT = Path(__file__).parent.parent


def jobs(text: str, **overrides: object) -> list[Job]:
    return parse_prompts(text, "f.yaml", Path(), overrides=overrides)


def test_precedence_is_options_over_job_over_defaults_over_preset():
    text = """
defaults: {steps: 9, width: 32, height: 48, output: {format: mp4, fps: 4}}
jobs:
  - {prompt: a, width: 16, seed: 1, output: {fps: 12}}
"""
    (job,) = jobs(text, height=8)
    assert (job.steps, job.width, job.height, job.base) == (9, 16, 8, "bundled:tiny")
    assert (job.output.format, job.output.fps) == ("mp4", 12)
    assert job.guidance_scale == load_preset("tiny")["guidance_scale"]


def test_a_list_of_seeds_makes_a_job_each_and_minus_one_draws():
    made = jobs("jobs: [{prompt: a, seed: [1, 2, -1]}, {prompt: b}]")
    assert [job.seed for job in made[:2]] == [1, 2]
    assert made[2].seed != made[3].seed
    assert [job.name for job in made] == ["a", "a", "a", "b"]


def test_travel_keeps_its_frames():
    (job,) = jobs("jobs: [{prompt: {8: b, 0: a}}]")
    assert job.prompt == {0: "a", 8: "b"}


def test_paths_are_relative_to_the_file(tmp_path):
    (tmp_path / "styles").mkdir()
    (tmp_path / "styles" / "neon.safetensors").touch()
    (tmp_path / "p.yaml").write_text("jobs: [{prompt: a, loras: [styles/neon.safetensors]}]")
    (job,) = load_prompt_file(tmp_path / "p.yaml")
    assert job.loras[0].path == str(tmp_path / "styles" / "neon.safetensors")


def test_sidecar_is_a_prompt_file_of_the_same_job():
    text = (
        "jobs: [{prompt: {0: 'a: b', 4: ünï}, seed: 18446744073709551615,"
        " loras: [{path: x, scale: -2}]}]"
    )
    (job,) = jobs(text)
    assert jobs(dump_job(job, made_with={"device": "cpu"})) == [job]


def test_official_files_become_their_jobs(peer_prompts):
    files = sorted(peer_prompts.glob("1_*/*.yaml")) + sorted(peer_prompts.glob("2_*/*.yaml"))
    assert len(files) == 8
    for file in files:
        made = load_prompt_file(file)
        assert len(made) == 8
        assert all(job.steps == 25 and job.width == 512 for job in made)
    lora = made[0].motion_loras[0]
    assert (lora.path, lora.scale) == ("./models/MotionLoRA/v2_lora_ZoomIn.ckpt", 1.0)
    assert made[0].seed == 43242532350557906


def test_official_sparsectrl_files_are_refused_by_key(peer_prompts):
    for file in peer_prompts.glob("3_*/*.yaml"):
        with pytest.raises(PromptFileError, match="controlnet_path: SparseCtrl is not supported"):
            load_prompt_file(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jobs: [{promt: a}]", r"jobs\[0\].promt: unknown key; did you mean prompt\?"),
        ("job: [{prompt: a}]", r"job: unknown key; did you mean jobs\?"),
        ("jobs: []", "jobs: must be a list"),
        (
            "jobs: [{prompt: a, steps: many}]",
            r"jobs\[0\].steps: must be a whole number, got 'many'",
        ),
        ("jobs: [{prompt: a, frames: 2.5}]", "must be a whole number, got 2.5"),
        ("jobs: [{prompt: a, frames: 0}]", "frames must be 1 or more"),
        ("jobs: [{prompt: a, seed: x}]", "seed: must be -1 or a whole number"),
        ("jobs: [{prompt: {3: a}}]", "prompt must have a text for frame 0"),
        ("jobs: [{prompt: {0: a, 99: b}}]", "prompt names frame 99 but the clip has 16"),
        ("jobs: [{prompt: a, output: {format: avi}}]", "output.format must be gif or mp4"),
        ("jobs: [{prompt: a, output: {fps: 80}}]", "at most 50"),
        ("jobs: [{prompt: a, output: {fsp: 8}}]", r"output.fsp: unknown key; did you mean fps\?"),
        ("jobs: [{prompt: a, loras: [{file: x}]}]", r"loras\[0\]: must be a path"),
        ("preset: tinny\njobs: [{prompt: a}]", "no preset 'tinny'; there are"),
        ("jobs: [", "no valid YAML in line 1"),
        ("just text", "must be a mapping"),
        ("- {prompt: [a, b, c], seed: [1, 2]}", r"seed: has 2 values for 3 prompts"),
    ],
)
def test_wrong_files_are_told_what_and_where(text, message):
    with pytest.raises(PromptFileError, match=message) as caught:
        jobs(text)
    assert str(caught.value).startswith("f.yaml: ")


def test_every_problem_is_told_at_once():
    with pytest.raises(PromptFileError) as caught:
        jobs("jobs: [{promt: a}, {prompt: b, steps: x}, {prompt: c, seed: y}]")
    told = str(caught.value)
    assert all(f"jobs[{i}]" in told for i in range(3))


def test_options_alone_make_a_job_with_the_bundled_model():
    (job,) = job_from_options({"prompt": "a", "seed": 3})
    assert (job.base, job.width, job.seed) == ("bundled:tiny", 64, 3)


def test_presets_are_whole():
    assert {
        "tiny", "sd15-v1", "sd15-v2", "sd15-v3", "sdxl-beta", "hotshot-xl", "animatelcm",
        "lightning-2step", "lightning-4step", "lightning-8step",
    } <= set(preset_names())  # fmt: skip
    for name in preset_names():
        assert job_from_options({"prompt": "a", "preset": name})[0].motion


def test_shipped_prompt_files_are_sound():
    files = sorted((ROOT / "prompts").glob("*.yaml"))
    assert len(files) >= 5
    for file in files:
        assert load_prompt_file(file), file


def test_a_base_model_alone_takes_only_what_its_presets_agree_on():
    assert defaults_of("bundled:tiny")["guidance_scale"] == 3.0
    shared = defaults_of("emilianJR/epiCRealism")  # in LCM's and Lightning's presets
    assert shared == {"width": 512, "height": 512, "frames": 16}
