"""The shipped prompt files of directing a clip: every job is planned, one a file is made small."""

import json

import pytest
from conftest import ROOT
from PIL import Image

from animatediff_core import generate
from animatediff_core.jobs import load_prompt_file

PROMPTS = ROOT / "prompts"
SIZE = {"width": 32, "height": 32}
"""But for files with pictures beside them, which are as large as their clips."""


@pytest.mark.parametrize(
    "name", ["travel", "weights", "long", "loop", "freenoise", "freeinit", "upscale", "sampling",
             "outputs", "extends", "motion", "image-to-video", "video-to-video", "regions",
             "edges", "image-prompt"],
)  # fmt: skip
def test_a_shipped_file_is_sound_and_its_last_job_makes_a_clip(asked, tmp_path, name):
    file = PROMPTS / f"{name}.yaml"
    small = {"steps": 2} | ({"frames": 4} if "images/" in file.read_text() else SIZE)
    options = [f"--set={key}={value}" for key, value in small.items()]
    planned = asked("generate", file, *options, "--dry-run", "--json")
    assert planned.exit_code == 0, planned.stderr
    jobs = load_prompt_file(file, overrides=small)
    names = [json.loads(line)["name"] for line in planned.stdout.splitlines()]
    assert names == [job.name for job in jobs]
    (result,) = generate(jobs[-1:], output_dir=tmp_path / "out")
    assert result.error is None
    job, scale = result.job, 1 if result.job.upscale is None else result.job.upscale.scale
    assert result.frames.shape == (
        job.frames, round(job.height * scale), round(job.width * scale), 3,
    )  # fmt: skip
    if result.path.suffix == ".gif" and not (job.output.ping_pong or job.output.interpolate):
        with Image.open(result.path) as clip:
            assert clip.n_frames == job.frames
            assert clip.size == result.frames.shape[2:0:-1]


def test_the_file_for_released_models_names_every_kind_and_needs_only_them(asked):
    jobs = load_prompt_file(PROMPTS / "control-models.yaml")
    for key in ("controlnets", "t2i_adapters", "sparse_controls", "ip_adapters"):
        assert any(getattr(job, key) for job in jobs), key
    assert any(job.camera.moves for job in jobs)
    assert any(job.animate for job in jobs)
    planned = asked("generate", PROMPTS / "control-models.yaml", "--dry-run", "--offline")
    assert planned.exit_code == 3
    lines = planned.stderr.replace("error: ", "").splitlines()
    assert any("is not in the local cache" in line for line in lines)
    wanted = ("is not in the local cache", "no such video", "no such image")
    assert all(any(one in line for one in wanted) for line in lines)
