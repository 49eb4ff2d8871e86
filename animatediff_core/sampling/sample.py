"""One job on a loaded model: text, noise, denoising, frames.

Legend: b batch, f frames, c channels, h w latent size.
"""

import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from ..conditions import KINDS, LoadedModel
from ..diffusion.conditioning import Conditioning
from ..diffusion.denoise import denoise_steps, num_steps
from ..diffusion.free_init import low_pass, renewed_noise, steps_of
from ..diffusion.free_noise import free_noise
from ..diffusion.guidance import Guidance
from ..diffusion.noise import draw_noise, seeded
from ..diffusion.schedules import make_scheduler
from ..diffusion.size_conditions import size_conditions
from ..diffusion.step_info import StepInfo
from ..diffusion.text import TextEmbedding, embed_pair
from ..diffusion.upscale import enlarge
from ..diffusion.windows import is_divided
from ..errors import CheckpointError
from ..jobs import Job, Upscale, first_step
from ..media.on_disk import on_disk
from .decoding import decoded

log = logging.getLogger(__name__)
_LEAST_ALPHA = 1e-6
"""Below it no signal of a clip is left in the noisiest step; diffusers writes 2**-24 for zero."""


@dataclass(frozen=True, kw_only=True)
class _Run:
    """Everything that the sampling passes of a job share."""

    job: Job
    model: LoadedModel
    scheduler: SchedulerMixin
    text: TextEmbedding
    negative_text: TextEmbedding
    generator: torch.Generator
    """Feeds the scheduler and FreeInit, on the CPU."""
    steps: int
    """Steps of all passes."""
    on_step: Callable[[StepInfo, Tensor], None] | None
    """Called with the latents, 1 c f h w, after each step."""


def sample(
    job: Job,
    model: LoadedModel,
    *,
    folder: Path | None = None,
    notes: dict[str, Any] | None = None,
    decode_chunk: int = 8,
    on_step: Callable[[StepInfo, Tensor], None] | None = None,
) -> Iterator[StepInfo | np.ndarray]:
    """Steps, then the frames f h w 3 uint8 of one job on a loaded model.

    The frames of a clip that is denoised in context windows are in a file without a name in
    `folder` (default: where temporary files are), not in memory. `notes` gets what the sidecar says
    besides the job. `decode_chunk` frames are decoded together. `on_step`
    is called with the latents, 1 c f h w, after each step or window.
    """
    notes = {} if notes is None else notes
    _warn_of_unused_tokens(job, model)
    run = _prepare(job, model, on_step)
    with ExitStack() as attached:
        for kind in KINDS:
            if (detach := kind.load(job, model)) is not None:
                attached.callback(detach)
        latents = yield from _first_pass(run)
        if job.upscale is not None:
            latents = yield from _second_pass(run, job.upscale, latents)
    if not torch.isfinite(latents).all():
        raise CheckpointError(
            f"{job.name}: the model gave values that are no numbers; use --dtype fp32, or bf16"
        )
    if not is_divided(job.window, job.frames):
        yield decoded(job, model.base, latents, notes, decode_chunk)
        return
    parts = (
        decoded(job, model.base, part, notes, decode_chunk)
        for part in latents.split(decode_chunk, dim=2)
    )
    yield on_disk(parts, folder or Path(gettempdir()))


def _warn_of_unused_tokens(job: Job, model: LoadedModel) -> None:
    prompts = " ".join([*job.prompt.values(), *job.negative_prompt.values()]).lower()
    for token in (t for t in model.base.placeholder_tokens if t.lower() not in prompts):
        message = "%s: the embedding's placeholder token %r is in no prompt, so it has no effect"
        log.warning(message, job.name, token)


def _prepare(
    job: Job, model: LoadedModel, on_step: Callable[[StepInfo, Tensor], None] | None
) -> _Run:
    base, config = model.base, model.animated.motion.config
    spacing = job.timestep_spacing or config.timestep_spacing
    config = replace(config, betas=job.betas or config.betas, timestep_spacing=spacing)
    scheduler = make_scheduler(
        job.scheduler,
        config,
        prediction_type=base.prediction_type,
        zero_snr=base.zero_snr,
        steps=job.steps,
    )
    if job.free_init is not None and float(scheduler.alphas_cumprod[-1]) < _LEAST_ALPHA:
        raise CheckpointError(
            f"{job.name}: free_init has no effect on a base model whose noise ends in zero SNR, "
            "as nothing of a clip is left there; leave it out"
        )
    start = _start(job)
    total = sum(num_steps(scheduler, steps, start) for steps in _iterations(job))
    if job.upscale is not None:
        second = first_step(job.upscale.strength, job.steps)
        total += num_steps(scheduler, job.steps, second)
    text, negative_text = embed_pair(
        base,
        job.prompt,
        job.negative_prompt,
        job.frames,
        travel=job.travel,
        travel_loop=job.travel_loop,
        clip_skip=job.clip_skip,
    )
    return _Run(
        job=job,
        model=model,
        scheduler=scheduler,
        text=text,
        negative_text=negative_text,
        generator=seeded(job.seed ^ 1),
        steps=total,
        on_step=on_step,
    )


def _start(job: Job) -> int:
    """The step, counted from 0, that a job's first pass begins with."""
    strengths = [s for kind in KINDS if (s := kind.strength(job)) is not None]
    return first_step(strengths[0], job.steps) if strengths else 0


def _iterations(job: Job) -> list[int]:
    """Steps of each time that the first pass samples the clip: once without FreeInit."""
    return [job.steps] if job.free_init is None else steps_of(job.free_init, job.steps)


def _first_pass(run: _Run) -> Generator[StepInfo, None, Tensor]:
    """Latents b c f h w from noise; FreeInit repeats it from improved noise."""
    job, model = run.job, run.model
    conditioning = _conditioning(run, (job.width, job.height))
    factor = model.base.vae_scale_factor
    height, width = job.height // factor, job.width // factor
    noise = initial = _noise(run, job.seed, height, width)
    latents, done, start = noise, 0, _start(job)
    for number, steps in enumerate(_iterations(job)):
        if job.free_init is not None and number > 0:
            low = low_pass(job.free_init, job.frames, height, width).to(latents.device)
            alpha = float(run.scheduler.alphas_cumprod[-1])
            fresh = torch.randn(noise.shape, generator=run.generator).to(latents.device)
            noise = renewed_noise(latents, initial, fresh, alpha, low)
        latents = yield from _denoised(
            run, noise, conditioning, done=done, steps=steps, start=start
        )
        done += num_steps(run.scheduler, steps, start)
    return latents


def _second_pass(run: _Run, upscale: Upscale, latents: Tensor) -> Generator[StepInfo, None, Tensor]:
    """Latents of the enlarged clip, b c f h w, with new details."""
    job, factor = run.job, run.model.base.vae_scale_factor
    height, width = (round(side * upscale.scale) // factor for side in (job.height, job.width))
    start = first_step(upscale.strength, job.steps)
    done = run.steps - num_steps(run.scheduler, job.steps, start)
    conditioning = _conditioning(run, (width * factor, height * factor))
    conditioning = replace(conditioning, source=enlarge(latents, height, width, upscale))
    noise = _noise(run, job.seed ^ 2, height, width)
    return (yield from _denoised(run, noise, conditioning, done=done, steps=job.steps, start=start))


def _conditioning(run: _Run, size: tuple[int, int]) -> Conditioning:
    """Everything that guides a pass of this width and height in pixels."""
    job, (width, height) = run.job, size
    divided = is_divided(job.window, job.frames)
    guidance = Guidance(
        scale=job.guidance_scale,
        schedule=job.guidance_schedule,
        rescale=job.guidance_rescale,
        interval=job.guidance_interval,
    )
    conditioning = Conditioning(
        text=run.text.for_unet(divided=divided),
        negative_text=run.negative_text.for_unet(divided=divided),
        conditions=size_conditions(run.text.pooled, height, width),
        negative_conditions=size_conditions(run.negative_text.pooled, height, width),
        guidance=guidance,
    )
    for kind in KINDS:
        conditioning = kind.apply(conditioning, job, run.model, size)
    return conditioning


def _noise(run: _Run, seed: int, height: int, width: int) -> Tensor:
    job, unet = run.job, run.model.animated.unet
    shape = (1, unet.config.in_channels, job.frames, height, width)
    if job.noise.type == "freenoise":
        assert job.window is not None  # planning has seen to it
        noise = free_noise(seed, shape, job.window)
    else:
        noise = draw_noise(seed, shape, job.noise)
    return noise.to(unet.device)


def _denoised(
    run: _Run, noise: Tensor, conditioning: Conditioning, *, done: int, steps: int, start: int
) -> Generator[StepInfo, None, Tensor]:
    """The latents of one sampling run, after `done` steps of runs before it."""
    result = noise
    for info, latents in denoise_steps(
        run.model.animated,
        run.scheduler,
        noise,
        conditioning,
        steps=steps,
        generator=run.generator,
        windows=run.job.window,
        start=start,
        fast=run.job.fast,
    ):
        result, info = latents, replace(info, step=done + info.step, steps=run.steps)
        if run.on_step is not None:
            run.on_step(info, latents)
        yield info
    return result
