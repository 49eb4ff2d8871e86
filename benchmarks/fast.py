"""The levels of `fast` against the exact clip: time, and how far they are from it.

Clips are the bundled model's, of prompts whose combinations it never met, with its own settings,
from loaded weights to frames; likeness is the PSNR of the decoded frames, the mean of all clips and
the least of one. At full size, SD1.5 with a v2 module of random weights, the last latents of one
clip are compared, from noise on.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from models import model
from place import Place
from torch import Tensor, nn
from turns import alternate, spread

import animatediff_core as ad
from animatediff_core.jobs import Job, job_from_options
from animatediff_core.motion import AnimatedUNet
from animatediff_core.planning.jobs import plan
from animatediff_core.sampling.device import choose
from animatediff_core.sampling.loading import load_model
from animatediff_core.sampling.placement import PlacedModel, Placement
from animatediff_core.sampling.sample import sample
from animatediff_core.speed import restore
from animatediff_core.tiny.report import held_out_scenes

LEVELS = (1, 2, 3)
"""Values of --fast."""


def compare_levels(place: Place, clips: int, rounds: int) -> Iterator[dict[str, Any]]:
    """One row a level."""
    jobs = [
        job_from_options({"prompt": scene.caption(), "seed": seed})[0]
        for seed, scene in enumerate(held_out_scenes(clips))
    ]
    exact, quick = (_placed(place, jobs[0], fast=fast) for fast in (False, True))
    wanted = [_frames(job, exact) for job in jobs]
    for level in LEVELS:
        asked = [job.replace(fast=level) for job in jobs]
        likeness = [
            _decibel(_frames(job, quick), one) for job, one in zip(asked, wanted, strict=True)
        ]
        times = alternate(
            place,
            {
                "ours": partial(_frames, asked[0], quick),
                "exact": partial(_frames, jobs[0], exact),
            },
            rounds,
        )
        mean, least = sum(likeness) / clips, min(likeness)
        yield {
            "case": f"fast {level}, bundled, {mean:.1f} dB (least {least:.1f} of {clips})",
            "unit": "s", **times, "ratio": times["exact"][1] / times["ours"][1],
            "likeness": likeness,
        }  # fmt: skip


@torch.no_grad()
def compare_latents(place: Place, frames: int, scheduler: str) -> Iterator[dict[str, Any]]:
    """One row a level at 256 x 256 pixels, 16 steps and guidance 7.5; level 0 is the dtype alone.

    `error`: relative L2 of the last latents, |level - exact| / |exact|; the exact ones are fp32, a
    level runs in the dtype that `generate` would choose. The model is held once and converted.
    """
    animated = ad.inflate(*(part.to(place.device) for part in model("full", frames)))
    run = partial(_latents, place, ad.optimize(animated), frames, scheduler)
    run(steps=1)
    wanted, exact = run()
    _, dtype = choose(place.device.type, None, fast=True)
    restore(animated)
    ad.optimize(nn.Module.to(animated, dtype))
    run(steps=1)
    kind = str(dtype).removeprefix("torch.")
    for level in (0, *LEVELS):
        got, ours = run(level=level)
        error = float((got - wanted).norm() / wanted.norm())
        yield {
            "case": f"fast {level}, latents, full, {frames} frames, {scheduler}, {kind}",
            "unit": "s", "ours": spread([ours]), "exact": spread([exact]),
            "ratio": exact / ours, "error": (error,),
        }  # fmt: skip


def _latents(
    place: Place,
    animated: AnimatedUNet,
    frames: int,
    scheduler: str,
    *,
    level: int = 0,
    steps: int = 16,
) -> tuple[Tensor, float]:
    """1 c f h w after all steps, and their seconds by the place's clock."""
    draw = torch.Generator().manual_seed(1)
    shapes = (1, 4, frames, 32, 32), (1, 77, 768), (1, 77, 768)
    noise, text, away = (torch.randn(shape, generator=draw).to(place.device) for shape in shapes)
    text, away = text.to(animated.unet.dtype), away.to(animated.unet.dtype)
    sampler = ad.make_scheduler(scheduler, animated.motion.config)
    start = place.thread_seconds()
    latents = ad.denoise(
        animated, sampler, noise, text, away, steps=steps, guidance_scale=7.5, generator=draw,
        fast=level,
    )  # fmt: skip
    return latents, place.thread_seconds() - start


def _placed(place: Place, job: Job, *, fast: bool) -> PlacedModel:
    """The model as `generate` runs it there for exact or for fast jobs."""
    (planned,) = plan([job], offline=True)
    device, dtype = choose(place.device.type, None, fast=fast)
    return PlacedModel(*load_model(planned.found, offline=True), Placement(device, dtype))


@torch.no_grad()
def _frames(job: Job, placed: PlacedModel) -> np.ndarray:
    *_, frames = sample(job, placed)
    assert isinstance(frames, np.ndarray)
    return frames


def _decibel(a: np.ndarray, b: np.ndarray) -> float:
    error = ((a.astype(np.float64) - b) ** 2).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))
