"""A whole clip, ours against diffusers' AnimateDiffPipeline and export_to_gif.

`from loaded weights` is sampling, decoding and writing a GIF in one process, of the bundled model
or of random weights of SD1.5's size with a v2 motion module; `whole command` is `animatediff
generate` against a script that does the same with diffusers, each a process of its own, from its
start to its end. Both make 16 frames (bundled 64 x 64, full 256 x 256) with the same sampler and
guidance.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import AnimateDiffPipeline, EulerAncestralDiscreteScheduler, MotionAdapter
from diffusers.utils import export_to_gif
from models import write_adapter, write_model
from place import Place
from turns import Times, alternate, run_child, spread

from animatediff_core.checkpoints.motion_module import load_motion_module
from animatediff_core.diffusion.step_info import StepInfo
from animatediff_core.errors import ClipError
from animatediff_core.jobs import Job
from animatediff_core.planning.models import ModelSpec, find_model
from animatediff_core.sampling.device import made_with
from animatediff_core.sampling.loading import load_model
from animatediff_core.sampling.output import write
from animatediff_core.sampling.placement import PlacedModel, Placement
from animatediff_core.sampling.sample import sample
from animatediff_core.weights.places import bundled_path

PROMPT = "a red circle moving right on a blue background"
BASE, MOTION = "bundled:tiny", "bundled:tiny/motion_module.safetensors"
GUIDANCE, STEPS = 3.0, 16
"""As the bundled model's preset has them."""
SCRIPT = """\
import sys
import torch
from diffusers import AnimateDiffPipeline, EulerAncestralDiscreteScheduler, MotionAdapter
from diffusers.utils import export_to_gif

base, motion, prompt, steps, guidance, path, device, dtype = sys.argv[1:]
adapter = MotionAdapter.from_pretrained(motion)
pipe = AnimateDiffPipeline.from_pretrained(
    base, motion_adapter=adapter, torch_dtype=getattr(torch, dtype)
).to(device)
pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(
    pipe.scheduler.config, beta_schedule="linear", steps_offset=1
)
pipe.unet.to(memory_format=torch.channels_last)
pipe.vae.to(memory_format=torch.channels_last)
frames = pipe(
    prompt, num_frames=16, width=64, height=64, num_inference_steps=int(steps),
    guidance_scale=float(guidance), generator=torch.Generator().manual_seed(1),
).frames[0]
export_to_gif(frames, path)
"""


def compare_clips(place: Place, size: str, steps: int, rounds: int) -> dict[str, Any]:
    """From loaded weights to the written GIF. The model of full size is warmed up by one step."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = _files(size, folder)
        sides = {
            "ours": _ours(place, files, folder), "diffusers": _theirs(place, files, folder)
        }  # fmt: skip
        warm = {name: partial(make, 1 if size == "full" else steps) for name, make in sides.items()}
        whole = {name: partial(make, steps) for name, make in sides.items()}
        times = alternate(place, whole, rounds, warm)
    return _row(f"from loaded weights to a GIF, {size}, {steps} steps", times)


def compare_commands(place: Place, rounds: int) -> list[dict[str, Any]]:
    """Two rows: CPU seconds and wall seconds of the whole processes."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "script.py").write_text(SCRIPT)
        write_adapter(load_motion_module(bundled_path(MOTION)), folder / "motion")
        ours = ["-m", "cli.app", "generate", "--prompt", PROMPT, "--seed", "1",
                "-d", place.device.type, "-o", folder / "clips"]  # fmt: skip
        theirs = [folder / "script.py", bundled_path(f"{BASE}/base"), folder / "motion", PROMPT,
                  str(STEPS), str(GUIDANCE), folder / "theirs.gif", place.device.type,
                  str(place.dtypes[0]).removeprefix("torch.")]  # fmt: skip
        sides = {"ours": ours, "diffusers": theirs}
        runs = {name: [run_child(one)] for name, one in sides.items()}  # files are read once
        for _ in range(rounds):
            for name, arguments in sides.items():
                runs[name].append(run_child(arguments))
    name = f"whole command, bundled, {STEPS} steps"
    cpu = {side: spread([run.cpu for run in some[1:]]) for side, some in runs.items()}
    wall = {side: spread([run.wall for run in some[1:]]) for side, some in runs.items()}
    return [_row(name, cpu), _row(f"{name}, wall", wall)]


def _row(case: str, times: dict[str, Times]) -> dict[str, Any]:
    ratio = times["diffusers"][1] / times["ours"][1]
    return {"case": case, "unit": "s", **times, "ratio": ratio}


@dataclass(frozen=True)
class _Files:
    """A model's folders, and the pixels of its clips."""

    base: Path
    motion: Path
    side: int


def _files(size: str, scratch: Path) -> _Files:
    if size == "bundled":
        write_adapter(load_motion_module(bundled_path(MOTION)), scratch / "motion")
        return _Files(bundled_path(f"{BASE}/base"), scratch / "motion", 64)
    folder = Path("build") / f"bench-{size}"
    write_model(size, folder)
    return _Files(folder / "base", folder / "motion", 256)


def _ours(place: Place, files: _Files, folder: Path) -> Callable[[int], Path]:
    base, motion = str(files.base), str(files.motion)
    found = find_model(ModelSpec(base=base, motion=motion), offline=True)
    device, dtype = place.device, place.dtypes[0]
    placed = PlacedModel(*load_model(found, offline=True), Placement(device, dtype))

    def make(steps: int) -> Path:
        job = Job(name="clip", prompt={0: PROMPT}, seed=1, base=base, motion=motion, frames=16,
                  width=files.side, height=files.side, steps=steps, guidance_scale=GUIDANCE,
                  scheduler="euler_a")  # fmt: skip
        events = sample(job, placed, folder=folder)
        (frames,) = (event for event in events if not isinstance(event, StepInfo))
        try:
            return write(job, frames, made_with(placed), folder)
        except ClipError:  # random weights make noise, which is kept and refused
            return folder

    return make


def _theirs(place: Place, files: _Files, folder: Path) -> Callable[[int], Any]:
    adapter = MotionAdapter.from_pretrained(files.motion)
    pipe = AnimateDiffPipeline.from_pretrained(
        files.base, motion_adapter=adapter, torch_dtype=place.dtypes[0]
    ).to(place.device)
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(
        pipe.scheduler.config, beta_schedule="linear", steps_offset=1
    )
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.vae.to(memory_format=torch.channels_last)
    pipe.set_progress_bar_config(disable=True)

    def make(steps: int) -> Any:
        frames = pipe(
            PROMPT, num_frames=16, width=files.side, height=files.side,
            num_inference_steps=steps, guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(1),
        ).frames[0]  # fmt: skip
        return export_to_gif(frames, str(folder / "theirs.gif"))

    return make
