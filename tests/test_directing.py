"""The shipped prompt files of directing a clip, made small by the command, every job of them."""

import json

import pytest
from conftest import ROOT
from PIL import Image

PROMPTS = ROOT / "prompts"
SMALL = ("--steps", 2, "-W", 32, "-H", 32)


@pytest.mark.parametrize(
    "name", ["travel", "weights", "long", "loop", "freenoise", "freeinit", "upscale", "sampling",
             "outputs", "extends", "motion"],
)  # fmt: skip
def test_every_job_of_a_shipped_file_is_made(asked, tmp_path, name):
    planned = asked("generate", PROMPTS / f"{name}.yaml", *SMALL, "--dry-run", "--json")
    jobs = [json.loads(line) for line in planned.stdout.splitlines()]
    made = asked("generate", PROMPTS / f"{name}.yaml", *SMALL, "--json", "-o", "out")
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
                assert clip.n_frames == job.get("frames", 16)
                scale = (job.get("upscale") or {}).get("scale", 1)
                assert clip.size == (round(32 * scale), round(32 * scale))
