"""One job on a loaded model: text, noise, denoising, frames."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..checkpoints.base import BaseModel
from ..diffusion.denoise import Guided, denoise_steps
from ..diffusion.guidance import Guidance
from ..diffusion.noise import draw_noise, seeded
from ..diffusion.schedules import make_scheduler
from ..diffusion.sizes import size_conditions
from ..diffusion.text import embed_pair
from ..errors import CheckpointError
from ..jobs import Job
from ..motion import AnimatedUNet, MotionModule
from .decoding import decoded

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """One denoising step of a job is done, or one window of a step."""

    job: Job
    step: int
    """Steps done."""
    steps: int
    window: int = 0
    """Windows done of the step in progress; 0 when it is over."""
    windows: int = 1


def sample(
    job: Job, base: BaseModel, animated: AnimatedUNet, *, notes: dict[str, Any] | None = None
) -> Iterator[Step | np.ndarray]:
    """Steps, then the frames f h w 3 uint8 of one job on a loaded model.

    `notes` gets what the sidecar should say besides the job.
    """
    motion: MotionModule = animated.motion
    device = animated.unet.device
    said = " ".join([*job.prompt.values(), *job.negative_prompt.values()]).lower()
    for word in (w for w in base.triggers if w.lower() not in said):
        log.warning("%s: the embedding's word %r stands in no prompt, so it does nothing",
                    job.name, word)  # fmt: skip
    text, negative = embed_pair(
        base, job.prompt, job.negative_prompt, job.frames,
        travel=job.travel, clip_skip=job.clip_skip,
    )  # fmt: skip
    config = replace(motion.config, betas=job.betas or motion.config.betas)
    scheduler = make_scheduler(
        job.scheduler, config, prediction_type=base.prediction_type, zero_snr=base.zero_snr
    )
    channels = animated.unet.config.in_channels
    shape = (1, channels, job.frames, job.height // base.factor, job.width // base.factor)
    latents = draw_noise(job.seed, shape, job.noise).to(device)
    guided = Guided(
        text=text.tokens, negative_text=negative.tokens, guidance=_guidance(job),
        conditions=size_conditions(text.pooled, job.height, job.width),
        negative_conditions=size_conditions(negative.pooled, job.height, job.width),
    )  # fmt: skip
    for progress in denoise_steps(
        animated, scheduler, latents, guided, steps=job.steps, windows=job.window,
        generator=seeded(job.seed ^ 1),
    ):  # fmt: skip
        latents = progress.latents
        yield Step(job, progress.step, progress.steps, progress.window, progress.windows)
    if not torch.isfinite(latents).all():
        raise CheckpointError(
            f"{job.name}: the model gave values that are no numbers; use --dtype fp32, or bf16"
        )
    yield decoded(job, base, latents, {} if notes is None else notes)


def _guidance(job: Job) -> Guidance:
    return Guidance(
        scale=job.guidance_scale,
        schedule=job.guidance_schedule,
        rescale=job.guidance_rescale,
        interval=job.guidance_interval,
    )
