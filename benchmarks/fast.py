"""The levels of `fast` against the exact clip: time from loaded weights to frames, and likeness.

Clips are the bundled model's, of prompts whose combinations it never met, with its own settings;
likeness is the PSNR of the decoded frames, the mean of all clips and the least of one.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from place import Place
from turns import alternate

from animatediff_core.diffusion.reuse import LEVELS
from animatediff_core.jobs import Job, job_from_options
from animatediff_core.runs.device import choose
from animatediff_core.runs.model import load
from animatediff_core.runs.placing import Placed, Placing
from animatediff_core.runs.planning import plan
from animatediff_core.runs.sampling import sample
from animatediff_core.tiny.report import held_out_scenes


def compare_levels(place: Place, clips: int, rounds: int) -> Iterator[dict[str, Any]]:
    """One row a level."""
    jobs = [
        job_from_options({"prompt": scene.caption(), "seed": seed})[0]
        for seed, scene in enumerate(held_out_scenes(clips))
    ]
    exact, quick = (_placed(place, jobs[0], fast=fast) for fast in (False, True))
    wanted = [_frames(job, exact) for job in jobs]
    for level in LEVELS:
        asked = [replace(job, fast=level) for job in jobs]
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


def _placed(place: Place, job: Job, *, fast: bool) -> Placed:
    """The model as `generate` runs it there for exact or for fast jobs."""
    (planned,) = plan([job], offline=True)
    device, dtype = choose(place.device.type, None, fast=fast)
    return Placed(*load(planned.found, offline=True), Placing(device, dtype))


@torch.no_grad()
def _frames(job: Job, placed: Placed) -> np.ndarray:
    *_, frames = sample(job, placed.base, placed.animated)
    assert isinstance(frames, np.ndarray)
    return frames


def _decibel(a: np.ndarray, b: np.ndarray) -> float:
    error = ((a.astype(np.float64) - b) ** 2).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))
