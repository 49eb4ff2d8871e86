"""A whole clip of the bundled model, ours against diffusers' AnimateDiffPipeline and export_to_gif.

`from loaded weights` is sampling, decoding and writing a GIF in one process; `whole command` is
`animatediff generate` against a script that does the same with diffusers, each a process of its
own, from its start to its end. Both make 16 frames of 64 x 64 with the same sampler and guidance.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import AnimateDiffPipeline, EulerAncestralDiscreteScheduler, MotionAdapter
from diffusers.utils import export_to_gif
from models import write_adapter
from turns import Times, alternate, run_child, spread

from animatediff_core.checkpoints.base import resolve_bundled
from animatediff_core.checkpoints.motion_modules import load_motion_module
from animatediff_core.jobs import Job
from animatediff_core.runs.control import ControlModels
from animatediff_core.runs.model import Parts, find, load
from animatediff_core.runs.placing import Placed, Placing
from animatediff_core.runs.sampling import Step, sample
from animatediff_core.runs.writing import write

PROMPT = "a red circle moving right on a blue background"
BASE, MOTION = "bundled:tiny", "bundled:tiny/motion_module.safetensors"
GUIDANCE, STEPS = 3.0, 16
"""As the bundled model's preset has them."""
SCRIPT = """\
import sys
import torch
from diffusers import AnimateDiffPipeline, EulerAncestralDiscreteScheduler, MotionAdapter
from diffusers.utils import export_to_gif

base, motion, prompt, steps, guidance, path = sys.argv[1:]
adapter = MotionAdapter.from_pretrained(motion)
pipe = AnimateDiffPipeline.from_pretrained(
    base, motion_adapter=adapter, torch_dtype=torch.float32
)
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


def compare_clips(steps: int, rounds: int) -> dict[str, Any]:
    """From loaded weights to the written GIF."""
    with TemporaryDirectory() as scratch:
        sides = {"ours": _ours(steps, Path(scratch)), "diffusers": _theirs(steps, Path(scratch))}
        times = alternate(sides, rounds)
    return _row(f"from loaded weights to a GIF, bundled, {steps} steps", times)


def compare_commands(rounds: int) -> list[dict[str, Any]]:
    """Two rows: CPU seconds and wall seconds of the whole processes."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "script.py").write_text(SCRIPT)
        write_adapter(load_motion_module(resolve_bundled(MOTION)), folder / "motion")
        ours = ["-m", "cli.app", "generate", "--prompt", PROMPT, "--seed", "1",
                "-o", folder / "clips"]  # fmt: skip
        theirs = [folder / "script.py", resolve_bundled(f"{BASE}/base"), folder / "motion", PROMPT,
                  str(STEPS), str(GUIDANCE), folder / "theirs.gif"]  # fmt: skip
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


def _ours(steps: int, folder: Path) -> Any:
    found = find(Parts(base=BASE, motion=MOTION), offline=True)
    device, dtype = torch.device("cpu"), torch.float32
    placed = Placed(*load(found, offline=True), Placing(device, dtype))
    models = ControlModels(base=placed.base, device=device, dtype=dtype, offline=True)
    job = Job(name="clip", prompt={0: PROMPT}, seed=1, base=BASE, motion=MOTION, frames=16,
              width=64, height=64, steps=steps, guidance_scale=GUIDANCE,
              scheduler="euler_a")  # fmt: skip

    def make() -> Path:
        events = sample(job, placed.base, placed.animated, folder=folder, models=models)
        (frames,) = (event for event in events if not isinstance(event, Step))
        return write(job, frames, placed.base, folder)

    return make


def _theirs(steps: int, folder: Path) -> Any:
    write_adapter(load_motion_module(resolve_bundled(MOTION)), folder / "motion")
    adapter = MotionAdapter.from_pretrained(folder / "motion")
    pipe = AnimateDiffPipeline.from_pretrained(
        resolve_bundled(f"{BASE}/base"), motion_adapter=adapter, torch_dtype=torch.float32
    )
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(
        pipe.scheduler.config, beta_schedule="linear", steps_offset=1
    )
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.vae.to(memory_format=torch.channels_last)
    pipe.set_progress_bar_config(disable=True)

    def make() -> Any:
        frames = pipe(
            PROMPT, num_frames=16, width=64, height=64, num_inference_steps=steps,
            guidance_scale=GUIDANCE, generator=torch.Generator().manual_seed(1),
        ).frames[0]  # fmt: skip
        return export_to_gif(frames, str(folder / "theirs.gif"))

    return make
