"""One job on a loaded model: text, noise, denoising, frames."""

import logging
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from ..checkpoints.base_model import BaseModel
from ..diffusion.denoise import FrameText, Guided, Region, denoise_steps, num_steps
from ..diffusion.free_init import low_pass, renewed_noise, steps_of
from ..diffusion.free_noise import free_noise
from ..diffusion.guidance import Guidance
from ..diffusion.noise import draw_noise, seeded
from ..diffusion.schedules import make_scheduler
from ..diffusion.size_conditions import size_conditions
from ..diffusion.text import TextEmbedding, embed_pair
from ..diffusion.upscale import enlarge
from ..diffusion.windows import divides
from ..errors import CheckpointError
from ..jobs import Job, Upscale, first_step
from ..media.on_disk import on_disk
from ..motion import AnimatedUNet, Conditions, MotionModule
from ..planning.conditions import counted
from .conditions import ConditionModels, Lead, first_start, lead, mask_of
from .decoding import decoded
from .image_conditions import reading_pictures, with_pictures

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


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """What all passes of a job share."""

    job: Job
    animated: AnimatedUNet
    scheduler: SchedulerMixin
    text: TextEmbedding
    negative: TextEmbedding
    generator: torch.Generator
    """Feeds the scheduler and FreeInit, on the CPU."""
    base: BaseModel
    models: ConditionModels
    steps: int
    """Of all passes."""


def sample(
    job: Job,
    base: BaseModel,
    animated: AnimatedUNet,
    *,
    folder: Path | None = None,
    notes: dict[str, Any] | None = None,
    models: ConditionModels | None = None,
    decode_chunk: int = 8,
) -> Iterator[Step | np.ndarray]:
    """Steps, then the frames f h w 3 uint8 of one job on a loaded model.

    The frames of a clip that is denoised in windows lie in a file without a name in `folder` (by
    default where temporary files are), not in memory. `notes` gets what the sidecar should say
    besides the job. `models` are those that other jobs on this base model have loaded for control.
    `decode_chunk` frames are decoded together.
    """
    notes = {} if notes is None else notes
    _warn(job, base)
    if models is None:
        models = ConditionModels(base=base, device=animated.unet.device, dtype=animated.unet.dtype)
    prepared = _prepare(job, base, animated, models)
    with reading_pictures(job, models):
        latents = yield from _first_pass(prepared)
        if job.upscale is not None:
            latents = yield from _second_pass(prepared, job.upscale, latents)
    if not torch.isfinite(latents).all():
        raise CheckpointError(
            f"{job.name}: the model gave values that are no numbers; use --dtype fp32, or bf16"
        )
    if not divides(job.window, job.frames):
        yield decoded(job, base, latents, notes, decode_chunk)
        return
    parts = (
        decoded(job, base, part, notes, decode_chunk) for part in latents.split(decode_chunk, dim=2)
    )
    yield on_disk(parts, folder or Path(gettempdir()))


_LEAST_ALPHA = 1e-6
"""Below it a clip's share in the noisiest step is lost; diffusers writes 2**-24 for zero."""


def _warn(job: Job, base: BaseModel) -> None:
    said = " ".join([*job.prompt.values(), *job.negative_prompt.values()]).lower()
    for word in (w for w in base.placeholder_tokens if w.lower() not in said):
        log.warning("%s: the embedding's word %r stands in no prompt, so it does nothing",
                    job.name, word)  # fmt: skip


def _prepare(
    job: Job, base: BaseModel, animated: AnimatedUNet, models: ConditionModels
) -> _Prepared:
    motion: MotionModule = animated.motion
    config = replace(motion.config, betas=job.betas or motion.config.betas)
    scheduler = make_scheduler(
        job.scheduler, config, prediction_type=base.prediction_type, zero_snr=base.zero_snr
    )
    if job.free_init is not None and float(scheduler.alphas_cumprod[-1]) < _LEAST_ALPHA:
        raise CheckpointError(
            f"{job.name}: free_init has no effect on a base model whose noise ends in zero SNR, "
            "as nothing of a clip is left there; leave it out"
        )
    total = sum(num_steps(scheduler, steps, first_start(job)) for steps in _iterations(job))
    if job.upscale is not None:
        total += num_steps(scheduler, job.steps, first_step(job.upscale.strength, job.steps))
    text, negative = embed_pair(
        base, job.prompt, job.negative_prompt, job.frames,
        travel=job.travel, clip_skip=job.clip_skip,
    )  # fmt: skip
    return _Prepared(
        job=job, animated=animated, scheduler=scheduler, base=base, models=models, steps=total,
        text=text, negative=negative, generator=seeded(job.seed ^ 1),
    )  # fmt: skip


def _iterations(job: Job) -> list[int]:
    """Steps of each time that the first pass samples the clip."""
    return [job.steps] if job.free_init is None else steps_of(job.free_init, job.steps)


def _first_pass(given: _Prepared) -> Generator[Step, None, Tensor]:
    """Latents b c f h w from noise; with FreeInit again and again, from better noise each time."""
    job = given.job
    led, start = lead(job, given.models, (job.width, job.height)), first_start(job)
    height, width = (
        job.height // given.base.vae_scale_factor,
        job.width // given.base.vae_scale_factor,
    )
    noise = first = _noise(given, job.seed, height, width)
    latents, done = noise, 0
    for number, steps in enumerate(_iterations(job)):
        if job.free_init is not None and number > 0:
            kept = low_pass(job.free_init, job.frames, height, width).to(latents.device)
            alpha = float(given.scheduler.alphas_cumprod[-1])
            fresh = torch.randn(noise.shape, generator=given.generator).to(latents.device)
            noise = renewed_noise(latents, first, fresh, alpha, kept)
        latents = yield from _denoised(given, noise, led, done=done, steps=steps, start=start)
        done += num_steps(given.scheduler, steps, start)
    return latents


def _second_pass(
    given: _Prepared, upscale: Upscale, latents: Tensor
) -> Generator[Step, None, Tensor]:
    """Latents of a clip made larger, b c f h w, and its details made anew."""
    job = given.job
    height, width = (
        round(side * upscale.scale) // given.base.vae_scale_factor
        for side in (job.height, job.width)
    )
    start = first_step(upscale.strength, job.steps)
    done = given.steps - num_steps(given.scheduler, job.steps, start)
    led = lead(
        job,
        given.models,
        (width * given.base.vae_scale_factor, height * given.base.vae_scale_factor),
    )
    led = replace(led, source=enlarge(latents, height, width, upscale))
    noise = _noise(given, job.seed ^ 2, height, width)
    return (yield from _denoised(given, noise, led, done=done, steps=job.steps, start=start))


def _noise(given: _Prepared, seed: int, height: int, width: int) -> Tensor:
    job = given.job
    shape = (1, given.animated.unet.config.in_channels, job.frames, height, width)
    if job.noise.type == "freenoise":
        assert job.window is not None  # planning has seen to it
        noise = free_noise(seed, shape, job.window)
    else:
        noise = draw_noise(seed, shape, job.noise)
    return noise.to(given.animated.unet.device)


def _denoised(
    given: _Prepared, noise: Tensor, led: Lead, *, done: int, steps: int, start: int = 0
) -> Generator[Step, None, Tensor]:
    """One loop of `denoise_steps`, after `done` steps of loops before it; returns its latents."""
    latents = noise
    for at in denoise_steps(
        given.animated, given.scheduler, noise, _guided(given, noise, led), steps=steps,
        generator=given.generator, windows=given.job.window, start=start, source=led.source,
        kept=led.kept, fast=given.job.fast,
    ):  # fmt: skip
        latents = at.latents
        yield Step(given.job, done + at.step, given.steps, at.window, at.windows)
    return latents


def _guided(given: _Prepared, noise: Tensor, led: Lead) -> Guided:
    """What leads a pass over latents of this size, b c f h w."""
    job = given.job
    height, width = (
        noise.shape[3] * given.base.vae_scale_factor,
        noise.shape[4] * given.base.vae_scale_factor,
    )
    towards, away = with_pictures(
        job,
        given.models,
        (width, height),
        (
            size_conditions(given.text.pooled, height, width),
            size_conditions(given.negative.pooled, height, width),
        ),
    )
    return Guided(
        text=_states(given.text, job), negative_text=_states(given.negative, job),
        guidance=_guidance(job), conditions=towards, negative_conditions=away,
        controls=led.controls, regions=_regions(given, towards, height, width),
    )  # fmt: skip


def _regions(
    given: _Prepared, towards: Conditions | None, height: int, width: int
) -> tuple[Region, ...]:
    job, made = given.job, []
    for one in job.regions:
        text, _ = embed_pair(
            given.base, counted(one.prompt, job.frames, "regions.prompt"), job.negative_prompt,
            job.frames,
            travel=job.travel, clip_skip=job.clip_skip,
        )  # fmt: skip
        conditions = towards
        if towards is not None and towards.pooled_text is not None:
            conditions = replace(towards, pooled_text=text.pooled)
        mask = mask_of(one.mask, job, (width, height), given.base.vae_scale_factor)
        made.append(
            Region(
                text=_states(text, job),
                mask=mask.to(given.animated.unet.device),
                conditions=conditions,
            )
        )
    return tuple(made)


def _states(text: TextEmbedding, job: Job) -> Tensor | FrameText:
    """Of a long clip's travel only what a window reads is made."""
    travels = len(text.keys) > 1
    return text.at if travels and divides(job.window, job.frames) else text.tokens


def _guidance(job: Job) -> Guidance:
    return Guidance(
        scale=job.guidance_scale,
        schedule=job.guidance_schedule,
        rescale=job.guidance_rescale,
        interval=job.guidance_interval,
    )
