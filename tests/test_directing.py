"""The shipped prompt files of directing a clip, made small by the command, every job of them."""

import json

import pytest
from conftest import ROOT
from PIL import Image

from animatediff_core.jobs import load_prompt_file

PROMPTS = ROOT / "prompts"
SMALL = ("--steps", 2, "-W", 32, "-H", 32)


WITH_PICTURES = ("--steps", 2, "-L", 4)
"""The pictures beside those files are as large as their clips."""


@pytest.mark.parametrize(
    "name", ["travel", "weights", "long", "loop", "freenoise", "freeinit", "upscale", "sampling",
             "outputs", "extends", "motion", "image-to-video", "video-to-video", "regions",
             "edges", "image-prompt"],
)  # fmt: skip
def test_every_job_of_a_shipped_file_is_made(asked, tmp_path, name):
    file = PROMPTS / f"{name}.yaml"
    options = WITH_PICTURES if "images/" in file.read_text() else SMALL
    planned = asked("generate", file, *options, "--dry-run", "--json")
    jobs = [json.loads(line) for line in planned.stdout.splitlines()]
    made = asked("generate", file, *options, "--json", "-o", "out")
    assert made.exit_code == 0, made.stderr
    results = [json.loads(line) for line in made.stdout.splitlines()]
    assert [(r["name"], r["error"]) for r in results] == [(j["name"], None) for j in jobs]
    for job, result in zip(jobs, results, strict=True):
        path = tmp_path / result["path"]
        assert path.exists()
        if path.suffix == ".gif" and not job.get("output", {}).keys() & {
            "ping_pong",
            "interpolate",
        }:
            with Image.open(path) as clip:
                assert clip.n_frames == job["frames"]
                scale = (job.get("upscale") or {}).get("scale", 1)
                assert clip.size == (round(job["width"] * scale), round(job["height"] * scale))


def test_the_file_for_released_models_names_every_kind_and_needs_only_them(asked):
    jobs = load_prompt_file(PROMPTS / "control-models.yaml")
    for key in ("controlnets", "t2i_adapters", "sparse_controls", "ip_adapters"):
        assert any(getattr(job, key) for job in jobs), key
    assert any(job.camera.moves for job in jobs)
    assert any(job.animate for job in jobs)
    planned = asked("generate", PROMPTS / "control-models.yaml", "--dry-run", "--offline")
    assert planned.exit_code == 3
    lines = planned.stderr.replace("error: ", "").splitlines()
    assert all("is not in the local cache" in line for line in lines)
