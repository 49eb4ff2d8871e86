"""Long clips, loops, FreeNoise, FreeInit and the second pass on the bundled model."""

import gc
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from animatediff_core import generate, load_prompt_file
from animatediff_core.errors import AnimateDiffError
from animatediff_core.jobs import FreeInit, Job, Noise, Upscale, Window
from animatediff_core.planning.jobs import plan
from animatediff_core.runs.generate import JobStep, run

MOTION = "bundled:tiny/motion_module.safetensors"
SMALL = Job(
    name="small", prompt={0: "a red circle moving right on a blue background"}, seed=3,
    motion=MOTION, frames=20, width=16, height=16, steps=2, scheduler="euler_a",
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 17}, r"17 frames, but .* knows 16 at most; set window.length \(-C\) to 16"),
        ({"window": Window(length=24)}, "window.length .* is 24, but .* 16 frames at most"),
        ({"window": Window(length=24), "frames": 8}, "lower it to 16"),
        (
            {"window": Window(schedule="standard_uniform", stride=3)},
            r"window.stride: 3 \(-S 2\) spreads a window over more than the 20 frames; lower",
        ),
        ({"frames": 8, "noise": Noise(type="freenoise")}, "freenoise repeats a window's noise"),
        ({"upscale": Upscale(scale=1.3), "frames": 4}, "makes width 16 to 20.8.*use 1.25 or 1.5"),
        ({"upscale": Upscale(scale=1.1), "frames": 4}, "use 1.25$"),
    ],
)
def test_what_cannot_work_is_told_before_anything_runs(changes, message):
    with pytest.raises(AnimateDiffError, match=message):
        plan([SMALL.replace(**changes)])


JOBS = {
    "long": {"window": Window(length=8, overlap=2, schedule="standard_uniform")},
    "freenoise": {"window": Window(length=8), "noise": Noise(type="freenoise")},
    "freeinit": {"frames": 4, "free_init": FreeInit(iterations=2, fast=True)},
    "plain": {"frames": 4},
    "upscale": {"frames": 4, "upscale": Upscale(scale=2.5)},
}
STEPS = {"long": 2, "freenoise": 2, "freeinit": 1 + 2, "plain": 2, "upscale": 2 + 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """All jobs, run once: their results and their steps by name."""
    folder = tmp_path_factory.mktemp("length")
    jobs = [SMALL.replace(name=name, **changes) for name, changes in JOBS.items()]
    results, steps = {}, {name: [] for name in JOBS}
    for event in run(jobs, output_dir=folder, device="cpu"):
        if isinstance(event, JobStep):
            steps[event.job.name].append(event.info)
        elif hasattr(event, "error"):
            assert event.error is None, event.error
            results[event.job.name] = event
    return results, steps


def test_long_clips_lie_in_a_file_that_has_no_name(made):
    results, _ = made
    for name, result in results.items():
        side = 40 if name == "upscale" else 16
        assert result.frames.shape == (result.job.frames, side, side, 3)
        assert isinstance(result.frames, np.memmap) == (name in ("long", "freenoise"))
        assert result.frames.std() > 1
    left = {file.suffix for file in results["long"].path.parent.iterdir()}
    assert left == {".gif", ".yaml"}


def test_steps_are_counted_over_all_passes_and_windows(made):
    _, steps = made
    for name, events in steps.items():
        whole = [event.step for event in events if event.window == 0]
        assert whole == list(range(1, STEPS[name] + 1)), name
        assert {event.steps for event in events} == {STEPS[name]}
    # windows of 8 that share 2 begin at 0 6 12 in the first step, at 0 3 9 12 in the second
    assert [(event.window, event.windows) for event in steps["long"]] == [
        (1, 3), (2, 3), (0, 3), (1, 4), (2, 4), (3, 4), (0, 4),
    ]  # fmt: skip


def test_free_init_and_the_second_pass_change_the_clip_but_not_what_it_is_of(made):
    results, _ = made
    plain = results["plain"].frames.astype(float)
    assert not np.array_equal(results["freeinit"].frames, plain)
    larger = results["upscale"].frames.astype(float)
    assert np.abs(larger.mean((0, 1, 2)) - plain.mean((0, 1, 2))).max() < 40


def test_the_model_never_sees_more_than_a_window_and_a_chunk(tmp_path, monkeypatch):
    """What memory grows with: frames in the UNet, in the VAE, and in the text."""
    seen = {"UNet2DConditionModel": set(), "AutoencoderKL": set(), "text": set()}
    from diffusers.models import AutoencoderKL, UNet2DConditionModel

    called, decoded = UNet2DConditionModel.forward, AutoencoderKL.decode

    def forward(self, sample, timestep, text, *rest, **given):
        seen["UNet2DConditionModel"].add(len(sample))
        seen["text"].add(len(text))
        return called(self, sample, timestep, text, *rest, **given)

    def decode(self, latents, *rest, **given):
        seen["AutoencoderKL"].add(len(latents))
        return decoded(self, latents, *rest, **given)

    monkeypatch.setattr(UNet2DConditionModel, "forward", forward)
    monkeypatch.setattr(AutoencoderKL, "decode", decode)
    travel = {0: "a red circle", 30: "a red square"}
    job = SMALL.replace(prompt=travel, frames=40, steps=1, window=Window(length=8, overlap=0))
    (result,) = generate([job], output_dir=tmp_path, device="cpu")
    assert result.error is None
    assert len(result.frames) == 40
    assert seen == {"UNet2DConditionModel": {8}, "AutoencoderKL": {8}, "text": {8}}
    del result
    gc.collect()


MEASURE = """
import resource, sys
from pathlib import Path
from animatediff_core import generate, load_prompt_file
from animatediff_core.jobs import Job, Window
frames, side, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
prompt = {0: "a red circle moving right on a blue background", frames // 2: "a blue star"}
job = Job(name="m", prompt=prompt, seed=1, motion=sys.argv[4], frames=frames, width=side,
          height=side, steps=2, scheduler="euler_a", window=Window(schedule="standard_uniform"))
for result in generate([job], output_dir=folder, device="cpu"):
    assert result.error is None, result.error
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def peak(frames: int, side: int, folder) -> int:
    """MiB at most in memory while a clip is made and written, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(frames), str(side), str(folder), MOTION],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_clip(tmp_path):
    """300 frames of 32 x 32 are 0.9 MB; what a clip of 32 needs besides is the model's."""
    assert peak(300, 32, tmp_path) < peak(32, 32, tmp_path) + 30


@pytest.mark.slow
def test_a_loop_has_no_seam(tmp_path):
    """From the last frame to the first it is no further than between some two neighbours."""
    (job,) = load_prompt_file(ROOT / "prompts" / "loop.yaml")
    (result,) = generate([job], output_dir=tmp_path, device="cpu")
    frames = np.asarray(result.frames, dtype=float)
    steps = np.sqrt(((np.roll(frames, -1, 0) - frames) ** 2).mean((1, 2, 3)))
    assert steps[-1] <= steps[:-1].max()
