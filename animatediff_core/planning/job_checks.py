"""Checks of a job's text, sampler, sizes and length before anything is loaded."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from ..diffusion.encoders import most_clip_skip
from ..diffusion.prompt_syntax import check_prompt
from ..diffusion.schedules import check_scheduler, check_steps, check_timesteps
from ..diffusion.windows import is_divided, max_stride, window_length
from ..errors import Check, CheckpointError
from ..jobs import Job
from ..jobs.conditions import MotionPositions
from ..motion import Positions
from .models import FoundModel


def job_checks(job: Job) -> Iterator[Check]:
    """Checks of texts, sampler, noise and windows that need no model, by key of the setting."""
    for key in ("prompt", "negative_prompt"):
        for frame, text in getattr(job, key).items():
            yield f"{key}[{frame}]", partial(check_prompt, text)
    yield "scheduler", partial(check_steps, job.scheduler, job.steps)
    yield "noise.type", partial(_check_noise, job)
    yield "window.stride", partial(_check_stride, job)


def model_checks(job: Job, model: FoundModel) -> Iterator[Check]:
    """Checks of sampler, sizes and length on a model that was found, by key of the setting."""
    yield "clip_skip", partial(_check_clip_skip, job, model)
    yield "scheduler", partial(_check_scheduler, job, model)
    for key, size in (("width", job.width), ("height", job.height)):
        yield key, partial(_check_size, size, model.vae_scale_factor)
        if job.upscale is not None:
            check = partial(_check_scale, key, size, job.upscale.scale, model.vae_scale_factor)
            yield "upscale.scale", check
    if job.motion_positions != MotionPositions():
        yield "motion_positions", partial(_check_positions, job, model)
    else:
        yield "", partial(_check_length, job, model)


def knows_no_word(job: Job, model: FoundModel) -> bool:
    """Whether the text encoders have no token for any word of three letters or more."""
    words = {
        word for text in job.prompt.values() for word in re.findall(r"[a-z]{3,}", text.lower())
    }
    known = [tokenizer.get_vocab() for tokenizer in model.base.tokenizers]
    return bool(words) and not any(f"{word}</w>" in vocab for word in words for vocab in known)


def _check_scheduler(job: Job, model: FoundModel) -> None:
    prediction_type = job.prediction_type or "epsilon"
    spacing = job.timestep_spacing or model.motion_config.timestep_spacing
    config = replace(model.motion_config, timestep_spacing=spacing)
    check_scheduler(job.scheduler, config, prediction_type=prediction_type)
    check_timesteps(job.scheduler, config, job.steps)


def _check_clip_skip(job: Job, model: FoundModel) -> None:
    layers = [encoder.config.num_hidden_layers for encoder in model.base.text_encoders]
    if job.clip_skip > (most := most_clip_skip(layers)):
        raise CheckpointError(
            f"must be 1 to {most}, as many layers as the text encoder of {job.base} allows, "
            f"got {job.clip_skip}"
        )


def _check_size(size: int, factor: int) -> None:
    """A side in pixels suits the VAE."""
    if size % factor:
        lower = max(size // factor, 1) * factor
        raise CheckpointError(
            f"{size} is no multiple of {factor}, as the VAE needs; use {lower} or {lower + factor}"
        )


def _check_scale(side: str, size: int, scale: float, factor: int) -> None:
    """The enlarged side suits the VAE."""
    latents = size * scale / factor
    if abs(latents - round(latents)) <= 1e-6:
        return
    counts = (n for n in (int(latents), int(latents) + 1) if n * factor > size)
    near = " or ".join(f"{n * factor / size:g}" for n in counts)
    raise CheckpointError(
        f"{scale:g} makes {side} {size} to {size * scale:g}, no multiple of {factor}, as the VAE "
        f"needs; use {near}"
    )


def _check_noise(job: Job) -> None:
    if job.noise.type == "freenoise" and job.window is None:
        raise CheckpointError(
            "freenoise repeats a window's noise; set window.length (-C), or use another type"
        )


def _check_length(job: Job, model: FoundModel) -> None:
    """The frames that are denoised together are no more than the motion module knows."""
    longest, window, name = model.motion_config.max_frames, job.window, model.motion_path.name
    if window is not None and window.length > longest:
        raise CheckpointError(
            f"window.length (-C) is {window.length}, but {name} knows {longest} frames at most; "
            f"lower it to {longest}"
        )
    if not is_divided(window, job.frames) and job.frames > longest:
        raise CheckpointError(
            f"{job.frames} frames, but {name} knows {longest} at most; set window.length (-C) to "
            f"{longest} or less, or lower frames (-L) to {longest}"
        )


def _check_stride(job: Job) -> None:
    window = job.window
    if window is None or not is_divided(window, job.frames):
        return
    if window.stride > (most := max_stride(window, job.frames)):
        raise CheckpointError(
            f"{window.stride} (-S {window.stride - 1}) spreads a window over more than the "
            f"{job.frames} frames; lower it to {most} (-S {most - 1}), or lower window.length (-C)"
        )


def _check_positions(job: Job, model: FoundModel) -> None:
    """The frames that are denoised together stay within the module's positions."""
    at, most = job.motion_positions, model.motion_config.max_frames - 1
    together = window_length(job.window, job.frames)
    positions = Positions(stretch=at.stretch, offset=at.offset)
    if positions.fit(together, most + 1):
        return
    remedies = []
    if at.offset < most and together > 1:
        remedies.append(f"stretch to {_rounded_down((most - at.offset) / (together - 1))} or less")
    if (rest := most - at.stretch * (together - 1)) >= 0:
        remedies.append(f"offset to {_rounded_down(rest)} or less")
    raise CheckpointError(
        f"reaches {positions.last(together):g} with {together} frames together, but "
        f"{model.motion_path.name} has positions 0 to {most}; lower {', or '.join(remedies)}"
    )


def _rounded_down(value: float) -> str:
    return f"{math.floor(value * 1000 + 1e-6) / 1000:g}"
