"""Whole jobs and a training step on a pretended GPU: nothing mixes devices or waits in a step."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from conftest import TINY, new_motion, new_unet
from control_things import write_things
from pretended_gpu import GPU, PretendedGPU, on_cpu, pretended_gpu
from small_model import write_sdxl
from test_schedules import HERE
from torch import Tensor

from animatediff_core import denoise, inflate, make_scheduler, save_motion_module
from animatediff_core.checkpoints.loading import load_base
from animatediff_core.checkpoints.motion_module import load_motion_module
from animatediff_core.diffusion.decoding import decode
from animatediff_core.diffusion.encoders import encode
from animatediff_core.diffusion.noise import seeded
from animatediff_core.diffusion.schedules import training_scheduler
from animatediff_core.diffusion.step_info import StepInfo
from animatediff_core.jobs import Job, load_prompt_file
from animatediff_core.planning.jobs import plan
from animatediff_core.sampling.loading import load_model
from animatediff_core.sampling.placement import PlacedModel, Placement
from animatediff_core.sampling.sample import sample
from animatediff_core.training.checkpointing import recompute_blocks
from animatediff_core.training.clips import Sample, collate
from animatediff_core.training.config import TrainConfig
from animatediff_core.training.config_file import load_train_config
from animatediff_core.training.loop import Loop
from animatediff_core.training.stage import Stage
from animatediff_core.training.stages.motion import MotionLoss, motion_parameters

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers on NumPy 2
CPU = torch.device("cpu")
SMALL = {"prompt": "a red circle", "seed": 1, "frames": 3, "width": 32, "height": 32, "steps": 2,
         "scheduler": "ddim"}  # fmt: skip


@pytest.fixture(scope="module")
def things(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("things")
    write_things(folder)
    return folder


def job_of(folder: Path, **changes: object) -> Job:
    path = folder / "jobs.yaml"
    path.write_text(yaml.safe_dump({"jobs": [{**SMALL, **changes}]}))
    (job,) = load_prompt_file(path)
    return job


def made(job: Job, dtype: torch.dtype, device: torch.device) -> Iterator[StepInfo | np.ndarray]:
    """A job's steps and frames."""
    (planned,) = plan([job], offline=True)
    parts = load_model(planned.found, offline=True)
    yield from sample(job, PlacedModel(*parts, Placement(device, dtype), offline=True))


TRAVELS = {"prompt": {0: "a red circle", 2: "a blue star"}}
IN_WINDOWS = {"window": {"length": 2, "overlap": 1, "schedule": "looped_uniform"}}
JOBS = {
    "everything that leads": {
        "controlnets": [{"path": "controlnet", "images": "film", "canny": True,
                         "weights": {0: 1.0, -1: 0.0}}],
        "t2i_adapters": [{"path": "t2i", "images": "film", "canny": True}],
        "sparse_controls": [{"path": "scribble.safetensors", "images": {0: "film/0.png"}}],
        "ip_adapters": [{"path": "ip.safetensors", "encoder": "encoder", "weights": {0: 1.0},
                         "images": {0: "film/0.png", -1: "odd.png"}}],
        "start": {"images": "film", "strength": 1, "mask": "right.png"},
        "regions": [{"prompt": "a blue star", "mask": "right.png"}],
        "motion_positions": {"stretch": 0.5, "offset": 2},
        "motion_strength": {"frames": {0: 1.0, -1: 0.5}},
        "guidance_rescale": 0.5, "width": 64, "height": 64, **TRAVELS,
        "window": {"length": 2, "overlap": 1, "schedule": "standard_static"},
    },
    "keyframes, FreeInit, arcs": {
        "keyframes": {"images": {0: "film/0.png", 2: "film/2.png"}, "fit": "stretch"},
        "free_init": {"iterations": 2, "fast": True}, "travel": "slerp", **TRAVELS,
    },
    "a second pass, FreeNoise": {
        "upscale": {"scale": 1.5}, "noise": {"type": "freenoise"}, "steps": 1, **IN_WINDOWS,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", JOBS)
def test_a_job_stays_on_the_gpu_and_no_step_after_the_first_waits_for_it(things, name):
    waits, events = [], []
    with pretended_gpu() as gpu:
        for event in made(job_of(things, **JOBS[name]), torch.float16, GPU):
            events.append(event)
            waits.append([*gpu.waits])
            gpu.waits.clear()
    frames = events[-1]
    assert isinstance(frames, np.ndarray)
    assert frames.std() > 0
    if name == "everything that leads":
        assert waits[1:-1] == [[]] * 3  # two steps of two windows


def test_numbers_are_those_of_the_cpu(things):
    job = job_of(things, frames=2, scheduler="euler_a")
    with pretended_gpu():
        *_, there = made(job, torch.float32, GPU)
    *_, here = made(job, torch.float32, CPU)
    assert np.abs(there.astype(int) - here).max() <= 1


def test_sdxl_in_bf16(tmp_path):
    write_sdxl(tmp_path / "sdxl")
    motion = new_motion((32, 32, 64), version="sdxl-beta", mid_block=False)
    save_motion_module(motion, tmp_path / "motion.safetensors")
    job = job_of(tmp_path, base="sdxl", motion="motion.safetensors", **TRAVELS)
    with pretended_gpu():
        *_, frames = made(job, torch.bfloat16, GPU)
    assert frames.std() > 0


WAITS = {"unipc": 6}
"""What diffusers' own code waits for in a step; those that draw noise bring it over from the CPU,
which makes one."""


@pytest.mark.parametrize("name", [name for name in HERE if name != "dpmpp_sde"])
def test_a_sampler_gives_the_numbers_of_the_cpu_and_waits_for_noise_alone(name):
    def sampled(device: torch.device, gpu: PretendedGPU | None = None) -> Tensor:
        unet, motion = (
            new_unet((16,)).requires_grad_(False).to(device),
            new_motion((16,)).to(device),
        )
        animated = inflate(unet, motion)
        text = torch.randn(1, 5, 16, generator=seeded(3)).to(device)
        noise = torch.randn(1, 4, 2, 8, 8, generator=seeded(1)).to(device)
        waits: list[int] = []

        def on_step(step: int, steps: int) -> None:
            if gpu is not None:
                waits.append(len(gpu.waits))
                gpu.waits.clear()

        out = denoise(
            animated, make_scheduler(name, motion.config), noise, text, text, steps=3,
            guidance_scale=1, generator=seeded(2), on_step=on_step, fast=3,
        )  # fmt: skip
        assert all(one <= WAITS.get(name, 1) for one in waits[1:])
        return on_cpu(out)

    with pretended_gpu() as gpu:
        there = sampled(GPU, gpu)
    torch.testing.assert_close(there, sampled(CPU), rtol=1e-4, atol=1e-4)


def test_decoding_waits_once_and_again_for_a_chunk_that_overflows(monkeypatch):
    vae = load_base("bundled:tiny").vae
    latents = torch.randn(1, 4, 5, 4, 4, generator=seeded(1))
    wanted = decode(vae, latents)
    plain = type(vae).decode

    def overflowing(self: Any, part: Tensor, **named: Any) -> Any:
        (pixels,) = plain(self, part, **named)
        return (pixels * torch.nan if len(part) == 1 and part.dtype != torch.float32 else pixels,)

    told: list[int] = []
    with pretended_gpu() as gpu:
        latents = latents.to(GPU)
        vae.to(GPU, torch.float16)
        gpu.waits.clear()
        decode(vae, latents, chunk=2)
        assert len(gpu.waits) == 1
        monkeypatch.setattr(type(vae), "decode", overflowing)
        frames = decode(vae, latents, chunk=2, on_overflow=lambda: told.append(1))
        assert len(gpu.waits) == 3
    assert told == [1]
    assert np.abs(frames.astype(int) - wanted).max() <= 2


@pytest.mark.filterwarnings("ignore:.pin_memory. argument")  # which needs a GPU
def test_training_steps_stay_on_the_gpu(tmp_path, monkeypatch):
    """All of a step but the way from the loss back, which torch's engine does not go here; what is
    computed again for it is."""
    config = train_config(tmp_path, ema_decay=0.9, max_train_steps=2, gradient_checkpointing="full")
    base = load_base("bundled:tiny")
    motion = load_motion_module(TINY / "motion_module.safetensors")
    scheduler = training_scheduler(motion.config.betas)
    monkeypatch.setattr(Accelerator, "device", GPU)
    monkeypatch.setattr(Accelerator, "backward", lambda self, loss: _recompute(loss, trained))
    monkeypatch.setattr(torch._C, "_current_graph_task_id", lambda: 1)  # all of one backward
    with pretended_gpu() as gpu:
        base.to(GPU, torch.float32)
        animated = inflate(base.unet, motion.to(GPU))
        stage = Stage(
            loss=MotionLoss(animated, scheduler),
            parameters=motion_parameters(animated),
            embed=lambda captions: (encode(base, captions)[0], None),
            file_name="motion_module.safetensors",
        )
        trained = list(stage.parameters.values())
        recompute_blocks(animated)
        before = on_cpu(trained[0]).clone()
        base.vae.register_to_config(scaling_factor=0.2)
        frames = torch.randn(2, 3, 32, 32, generator=seeded(1))
        loop = Loop(config, stage, Stills(Sample(frames, "a red circle", (), None)), base.vae)
        steps = loop.steps()
        first = next(steps)
        gpu.waits.clear()
        second = next(steps)
    assert second.loss == pytest.approx(first.loss, rel=1)
    assert not torch.equal(before, on_cpu(trained[0]))
    assert len(gpu.waits) == 2  # for the loss and the norm that the step tells


def test_a_batch_is_pinned_whole(monkeypatch):
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self + 1)  # needs a GPU
    some = [
        Sample(torch.full((2, 3, 4, 4), float(k)), f"{k}", ((k, "bad"),), torch.ones(3))
        for k in (5, 6)
    ]
    batch = collate(some).pin_memory()
    assert batch.frames.mean((1, 2, 3)).tolist() == [6, 6, 7, 7]
    assert batch.conditions.tolist() == [[2, 2, 2]] * 2
    assert (batch.captions, batch.unreadable) == (["5", "6"], ((5, "bad"), (6, "bad")))


class Stills(torch.utils.data.Dataset):
    """One sample again and again."""

    cache = None

    def __init__(self, sample: Sample) -> None:
        self.sample = sample

    def __getitem__(self, number: int) -> Sample:
        return self.sample


def _recompute(loss: Tensor, trained: list[Tensor]) -> None:
    """Ask every layer below the loss for what it has kept; gradients of ones for all parameters."""
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for name in dir(node):
            if name.startswith("_saved_"):
                getattr(node, name)
        waiting += [above for above, _ in node.next_functions]
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)


def train_config(folder: Path, **changes: object) -> TrainConfig:
    path = folder / "train.yaml"
    data = {"video_folder": str(folder), "sample_size": 32, "sample_n_frames": 2}
    settings = {"stage": "motion", "base": "bundled:tiny", "learning_rate": 1e-3, "data": data}
    path.write_text(yaml.safe_dump({**settings, **changes}))
    return load_train_config(path)


def test_what_a_gpu_refuses_is_refused_and_what_it_is_waited_for_is_noted():
    with pretended_gpu() as gpu:
        there, here = torch.ones(2, device=GPU), torch.ones(2)
        with pytest.raises(RuntimeError, match="two devices"):
            there + here
        with pytest.raises(RuntimeError, match="its generator is on cpu"):
            torch.randn(2, device=GPU, generator=seeded(1))
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()
        assert gpu.waits == []
        float(there.sum())
        there[there > 0]
        here.to(GPU)
        there.tolist()
        assert len(gpu.waits) == 4
        here.to(GPU, non_blocking=True)
        assert len(gpu.waits) == 4
        assert (there * torch.tensor(2.0)).device == GPU
