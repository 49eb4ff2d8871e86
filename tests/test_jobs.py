"""Prompt files: what they give, and what is said of a wrong one."""

import json
from pathlib import Path

import pytest
import yaml

from animatediff_core.errors import PromptFileError
from animatediff_core.jobs import (
    FreeInit,
    Job,
    Noise,
    Output,
    Upscale,
    Window,
    building,
    defaults_of,
    dump_job,
    job_from_options,
    load_preset,
    load_prompt_file,
    parse_prompts,
    parse_settings,
    preset_names,
    presets,
)
from animatediff_core.jobs.conditions import Images, Start
from animatediff_core.jobs.naming import file_name
from animatediff_core.jobs.presets import OWN

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


def test_a_clips_name_is_short_lower_case_and_plain():
    assert file_name("x" * 300) == "x" * 60
    assert file_name("A red: Circle!") == "a-red-circle"
    assert file_name("a" * 59 + " b") == "a" * 59
    assert file_name("?!") == "clip"


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


EVERYTHING = """
defaults: {output: {format: mp4, crf: 20, codec: h265}, window: 12}
jobs:
  - prompt: {0: a, -1: b}
    negative_prompt: {0: c, "4": d}
    seed: 18446744073709551615
    travel: slerp
    clip_skip: 2
    frames: 24
    window: {overlap: 6, schedule: looped_uniform, stride: 2, fuse: flat}
    noise: mixed
    free_init: 5
    upscale: 1.5
    guidance_schedule: {0: 9, 0.5: 1e-1}
    guidance_rescale: 0.7
    guidance_interval: [0.1, 0.9]
    motion_strength: {scale: 1.2, blocks: {mid_block: 0.5}, frames: {0: 1, -1: 0.5}}
    motion_positions: {stretch: 0.5, offset: 1}
    output: {fps: 12, codec: av1, max_size: 1.5MB, ping_pong: true, interpolate: 24, sheet: true}
"""


def test_every_field_is_read_and_comes_back_from_the_sidecar():
    (job,) = jobs(EVERYTHING)
    assert job.prompt == {0: "a", 23: "b"}
    assert job.negative_prompt == {0: "c", 4: "d"}
    assert job.window == Window(
        length=12, overlap=6, schedule="looped_uniform", stride=2, fuse="flat"
    )
    assert (job.noise, job.free_init) == (Noise(type="mixed"), FreeInit(iterations=5))
    assert job.upscale == Upscale(scale=1.5)
    assert job.guidance_schedule == {0: 9, 0.5: 0.1}
    assert job.output == Output(
        format="mp4", crf=20, codec="av1", fps=12, max_size=1_500_000, ping_pong=True,
        interpolate=24, sheet=True,
    )  # fmt: skip
    assert jobs(dump_job(job)) == [job]
    defaults = {k for k, field in Job.model_fields.items() if getattr(job, k) == field.default}
    assert not (defaults - {"base"}) & yaml.safe_load(dump_job(job))["jobs"][0].keys() - OWN


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("free_init: true", "free_init: {}"),
        ("free_init: false", "free_init: null"),
        ("output: webm", "output: {format: webm}"),
        ("output: {max_size: 2MB}", "output: {max_size: 2000000}"),
        ("output: {max_size: 1KiB}", "output: {max_size: 1024}"),
        ("loras: a.safetensors", "loras: [{path: a.safetensors, scale: 1}]"),
        ("embeddings: a.pt", "embeddings: [{path: a.pt, word: null}]"),
        ("noise: null", "noise: {type: independent}"),
        ("negative_prompt: ''", "negative_prompt: {0: ''}"),
        ("steps: '12'", "steps: 12"),
    ],
)
def test_shorthands_mean_what_they_stand_for(said, meant):
    short, long = (jobs(f"jobs: [{{prompt: a, seed: 1, {text}}}]") for text in (said, meant))
    assert short == long


def test_records_are_merged_at_every_depth():
    text = """
defaults: {start: {images: {path: a.mp4, every: 2}, strength: 0.5}, window: 12}
jobs: [{prompt: a, seed: 1, start: {images: {every: 3}}, window: {overlap: 6}}]
"""
    over = parse_settings(
        {}, ["start.images.first=4", "start.mask.path=m.png", "start.mask.every=2"]
    )
    (job,) = jobs(text, **over)
    assert job.start == Start(
        images=Images(path="a.mp4", every=3, first=4),
        strength=0.5,
        mask=Images(path="m.png", every=2),
    )
    assert (job.window.length, job.window.overlap) == (12, 6)


@pytest.mark.parametrize("order", [1, -1])
def test_settings_of_one_record_may_come_in_any_order(order):
    over = parse_settings({}, ["start.images.every=3", "start.images.path=a.mp4"][::order])
    assert over == {"start": {"images": {"every": 3, "path": "a.mp4"}}}


@pytest.mark.parametrize(
    ("written", "seed"),
    [("947435423.0", 947435423), ("'12'", 12), ("18446744073709551615", 2**64 - 1)],
)
def test_a_seed_may_be_any_whole_number(written, seed):
    assert jobs(f"jobs: [{{prompt: a, seed: {written}}}]")[0].seed == seed


@pytest.mark.parametrize("written", ["-1", "none", "null", "-1.0"])
def test_a_seed_that_is_none_is_drawn(written, monkeypatch):
    monkeypatch.setattr(building.secrets, "randbits", lambda bits: 10 + bits)
    assert jobs(f"jobs: [{{prompt: a, seed: {written}}}]")[0].seed == 42


def test_key_frames_are_counted_from_the_start_and_need_no_first_one():
    (job,) = jobs("jobs: [{prompt: {-1: b, 8: a}, seed: 1, motion_strength: {frames: {-2: 0.5}}}]")
    assert list(job.prompt.items()) == [(8, "a"), (15, "b")]
    assert (job.motion_strength.frames, job.name) == ({14: 0.5}, "a")
    assert jobs(dump_job(job)) == [job]
    assert job.replace(prompt={-16: "c"}).prompt == {0: "c"}


@pytest.mark.parametrize(
    ("window", "overlap", "schedule"),
    [
        ("12", 3, "standard_uniform"),
        ("{length: 4, stride: 2, schedule: looped_uniform}", 1, "looped_uniform"),
        ("{length: 4, overlap: 2, schedule: standard_static}", 2, "standard_static"),
    ],
)
def test_windows_overlap_by_a_quarter_and_shift_from_step_to_step(window, overlap, schedule):
    (job,) = jobs(f"jobs: [{{prompt: a, seed: 1, window: {window}}}]")
    assert (job.window.overlap, job.window.schedule) == (overlap, schedule)
    assert jobs(dump_job(job)) == [job]


def test_another_format_leaves_behind_what_belonged_to_the_first():
    text = "defaults: {output: {format: mp4, crf: 12, fps: 12}}\njobs: [{prompt: a}]"
    (job,) = jobs(text, output={"format": "gif"})
    assert job.output == Output(format="gif", fps=12)
    assert jobs(text, output={"format": "mp4"})[0].output.crf == 12


def test_options_by_dotted_key_and_their_texts():
    said = parse_settings(
        {"window.length": 8, "output.fps": 12}, ["output.max_size=2MB", "free_init=3", "window=6"]
    )
    (job,) = job_from_options({"prompt": "a", "seed": 1, **said})
    assert job.window == Window(length=6, overlap=1)
    assert (job.output.fps, job.output.max_size) == (12, 2_000_000)
    assert job.free_init == FreeInit(iterations=3)
    with pytest.raises(PromptFileError) as caught:
        parse_settings({}, ["steps", "output.fsp=8", "seed.x=1"])
    assert str(caught.value).splitlines() == [
        "--set steps: must be KEY=VALUE, for instance output.fps=12",
        "--set output.fsp: unknown key; did you mean fps?",
        "--set seed.x: unknown key; seed has no parts",
    ]


def test_repeats_count_seeds_up():
    made = parse_prompts("jobs: [{prompt: a, seed: [7, 18446744073709551615]}]", "f", Path(),
                         repeats=2)  # fmt: skip
    assert [job.seed for job in made] == [7, 8, 2**64 - 1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jobs: [{promt: a}]", r"jobs\[0\]: promt: unknown key; did you mean prompt\?"),
        ("job: [{prompt: a}]", r"job: unknown key; did you mean jobs\?"),
        ("jobs: []", "jobs: must be a list"),
        (
            "jobs: [{prompt: a, steps: many}]",
            r"jobs\[0\]: steps: must be a whole number of 1 or more, got 'many'",
        ),
        ("jobs: [{prompt: a, frames: 2.5}]", "must be a whole number of 1 or more, got 2.5"),
        ("jobs: [{prompt: a, frames: 0}]", "frames: must be a whole number of 1 or more, got 0"),
        ("jobs: [{prompt: a, seed: x}]", "seed: must be -1 or a whole number"),
        ("jobs: [{prompt: a, seed: 1.5}]", "whole number up to 2..64-1, got 1.5"),
        ("jobs: [{prompt: a, seed: true}]", "whole number up to 2..64-1, got True"),
        ("jobs: [{prompt: a, seed: -2}]", "whole number up to 2..64-1, got -2"),
        ("jobs: [{prompt: {0: a, -16: b}}]", "prompt: names frame 0 twice: as 0 and as -16"),
        ('jobs: [{prompt: {0: a, "0": b}}]', "prompt: names frame 0 twice: as 0 and as '0'"),
        (
            "jobs: [{prompt: a, controlnets: [{path: x, images: y, weights: {0: 1, -16: 2}}]}]",
            r"controlnets\[0\].weights: names frame 0 twice: as 0 and as -16",
        ),
        ("jobs: [{prompt: a, keyframes: {0: a.png}}]", "keyframes.0: unknown key; known are fit,"),
        ("jobs: [{prompt: {}}]", "prompt: must be a text, or texts by frame number, got {}"),
        (
            "jobs: [{prompt: {0: a, 99: b}}]",
            "prompt: names frame 99, but the clip has 16; the last is -1",
        ),
        (
            "jobs: [{prompt: a, output: {format: avi}}]",
            "output.format: must be gif, mp4, .* or png, got 'avi'",
        ),
        ("jobs: [{prompt: a, output: {fps: 80}}]", "at most 50"),
        ("jobs: [{prompt: a, output: false}]", "output.format: must be gif"),
        ("jobs: [{prompt: {0: a, 16: b}}]", "names frame 16, but the clip has 16"),
        ("jobs: [{prompt: {0: a, -17: b}}]", "names frame -17, but the clip has 16"),
        ("jobs: [{prompt: a, output: {fsp: 8}}]", r"output.fsp: unknown key; did you mean fps\?"),
        ("jobs: [{prompt: a, loras: [{file: x}]}]", r"loras\[0\].path: is missing"),
        ("jobs: [{prompt: a, window: {lenght: 8}}]", r"window.lenght: .* did you mean length\?"),
        (
            "jobs: [{prompt: a, window: fast}]",
            "window.length: must be a whole number of 2 or more, got 'fast'",
        ),
        (
            "jobs: [{prompt: a, window: {overlap: 16}}]",
            r"jobs\[0\]: window.overlap: must be below length 16, got 16",
        ),
        ("jobs: [{prompt: a, noise: mixd}]", r"noise.type: .*, got 'mixd'"),
        ("jobs: [{prompt: a, free_init: {fast: 1}}]", "fast: must be true or false, got 1"),
        ("jobs: [{prompt: a, output: {max_size: 2XB}}]", "must be bytes, or a size such as"),
        (
            "jobs: [{prompt: a, guidance_schedule: 5}]",
            "must be a mapping of a number from 0 to 1 to a number of 0 or more, got 5",
        ),
        ("jobs: [{prompt: a, guidance_scale: .nan}]", "must be a number of 0 or more, got nan"),
        ("jobs: [{prompt: {0: [a]}}]", r"prompt\[0\]: must be text"),
        ("preset: tinny\njobs: [{prompt: a}]", "no preset 'tinny'; there are"),
        ("jobs: [", "no valid YAML in line 1"),
        ("just text", "must be a mapping"),
        ("jobs: [{prompt: a, steps: 1, steps: 2}]", "the key 'steps' occurs twice in one mapping"),
        ("jobs: [{prompt: ' '}]", "prompt: must be a text"),
        ("jobs: [{prompt: a, output: {name: ../x}}]", "must be a path inside the output folder"),
        ("jobs: [{prompt: a, output: {name: '{sed}'}}]", "unknown field {sed}; there are {name}"),
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


def test_a_prompt_may_be_empty_where_a_picture_says_what_to_make():
    adapter = {"path": "a", "encoder": "b", "images": "c.png"}
    (job,) = job_from_options({"prompt": "", "seed": 1, "ip_adapters": [adapter]})
    assert (job.name, job.prompt) == ("clip", {0: ""})
    with pytest.raises(PromptFileError, match="prompt: must be a text"):
        job_from_options({"prompt": " ", "seed": 1, "controlnets": []})


def test_a_job_with_its_own_base_does_not_take_the_files_variant_and_motion():
    made = jobs(
        "base: a\nmotion: m.ckpt\nvariant: fp16\n"
        "jobs: [{prompt: x}, {prompt: x, base: other}, {prompt: x, base: other, variant: bf16}]"
    )
    assert [(job.base, job.variant, bool(job.motion)) for job in made] == [
        ("a", "fp16", True), ("other", None, False), ("other", "bf16", False),
    ]  # fmt: skip


def test_a_base_of_two_presets_has_the_settings_in_which_they_agree(tmp_path, monkeypatch):
    for name, steps in (("one", 20), ("two", 30)):
        (tmp_path / f"{name}.yaml").write_text(f"base: x\nsteps: {steps}\nwidth: 48\nheight: 32\n")
    monkeypatch.setattr(presets, "FOLDER", tmp_path)
    presets._presets.cache_clear()
    try:
        assert defaults_of("x") == {"width": 48, "height": 32}
        (tmp_path / "two.yaml").unlink()
        presets._presets.cache_clear()
        assert defaults_of("x") == {"width": 48, "height": 32, "steps": 20}
    finally:
        presets._presets.cache_clear()


CONTROL = "[{path: c, images: film, strength: 0.5, start: 0.25, end: 0.75, weights: {0: 1, 2: 0}}]"
OTHERS = {
    "name": "x", "prompt": "{0: b, 3: c}", "negative_prompt": "d", "travel": "slerp",
    "travel_loop": "true", "clip_skip": 2, "seed": 18446744073709551615, "base": "other",
    "variant": "fp16", "unet": "u.safetensors", "motion": "m.ckpt", "motion_version": "v1",
    "vae": "v.safetensors",
    "prediction_type": "v_prediction", "loras": "[{path: l, scale: 0.5}, {path: n, scale: -1}]",
    "motion_loras": "[{path: ml, scale: 0.5}]",
    "embeddings": "[{path: e.pt, word: w}]",
    "frames": 12, "width": 48, "height": 40, "window": "{length: 6}",
    "noise": "{type: mixed, alpha: 2}", "free_init": "{iterations: 2}", "upscale": 1.5,
    "steps": 7, "guidance_scale": 2.5, "guidance_schedule": "{0: 3, 1: 2}",
    "guidance_rescale": 0.25, "guidance_interval": "[0.25, 0.5]", "scheduler": "euler", "fast": 2,
    "betas": "[0.001, 0.02, scaled_linear]", "timestep_spacing": "trailing", "controlnets": CONTROL,
    "sparse_controls": "[{path: s, images: {0: a.png}, strength: 0.5}]",
    "t2i_adapters": CONTROL, "camera": "[{move: pan-left, scale: 0.5}]",
    "ip_adapters": "[{path: i, encoder: e, images: {0: a.png}, scale: 0.5}]",
    "start": "{images: film, strength: 0.5, mask: m.png}",
    "keyframes": "{images: {0: a.png}, strength: 0.5}",
    "animate": "{image: a.png, motion: large}",
    "regions": "[{prompt: c, mask: m.png}]", "motion_strength": "{scale: 0.5, frames: {0: 1}}",
    "motion_positions": "{stretch: 0.5, offset: 1}", "output": "{format: webm, crf: 30}",
}  # fmt: skip
"""A value of each field that is not the default: of a new field too."""


@pytest.mark.parametrize("name", Job.model_fields)
def test_each_field_comes_back_from_the_sidecar_and_changes_that_field_alone(name):
    settings = {"name": "n", "prompt": "a", "seed": 1, name: OTHERS[name]}
    written = ", ".join(f"{key}: {value}" for key, value in settings.items())
    (plain,) = jobs("base: b\nmotion: k\njobs: [{name: n, prompt: a, seed: 1}]")
    (job,) = jobs(f"base: b\nmotion: k\njobs: [{{{written}}}]")
    changed = {key for key in Job.model_fields if getattr(job, key) != getattr(plain, key)}
    assert changed - {"motion"} == {name} - {"motion"}  # another base brings its own motion
    assert ("motion" in changed) == (name in ("motion", "base"))
    assert jobs(dump_job(job)) == [job]


def test_a_folder_of_another_model_has_the_size_of_its_configuration(tmp_path):
    for name, content in (
        ("unet", {"sample_size": 12}),
        ("vae", {"block_out_channels": [8, 8, 8]}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(content))
    assert defaults_of(str(tmp_path)) == {"width": 48, "height": 48}
