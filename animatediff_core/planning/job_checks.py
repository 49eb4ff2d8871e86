"""What of a job's text, sampler and sizes can be refused before anything is loaded."""

import math
from pathlib import Path

from ..diffusion.encoders import most_clip_skip
from ..diffusion.prompt_syntax import check_prompt
from ..diffusion.schedules import check_scheduler
from ..diffusion.windows import divides, max_stride, window_length
from ..errors import AnimateDiffError, CheckpointError, PromptFileError
from ..jobs import Job
from ..jobs.conditions import MotionPositions
from ..motion import Positions
from ..weights.files import printable, read_config_json, refused_json
from .models import FoundModel

_LAYERS = {"SD1.5": (12,), "SD2": (23,), "SDXL": (12, 32)}
"""Of the text encoders in a single file, whose family says them."""
_DEFAULT_LAYERS = 12
"""transformers' own, where a configuration names none."""


def check_text(job: Job, found: FoundModel) -> None:
    """Prompts that only other tools understand, and a clip_skip beyond the text encoder."""
    for key in ("prompt", "negative_prompt"):
        for frame, text in getattr(job, key).items():
            try:
                check_prompt(text)
            except PromptFileError as error:
                raise PromptFileError(f"{job.name}: {key} of frame {frame}: {error}") from error
    layers = _text_layers(found)
    if layers and job.clip_skip > (most := most_clip_skip(layers)):
        raise CheckpointError(
            f"{job.name}: clip_skip {job.clip_skip}, but the text encoder of {job.base} knows "
            f"1 to {most}"
        )


def check_sampler(job: Job, found: FoundModel) -> None:
    """A sampler's name, its packages, and what it cannot do with this model and so many steps."""
    try:
        check_scheduler(
            job.scheduler, found.motion_config, steps=job.steps,
            prediction_type=job.prediction_type or "epsilon",
        )  # fmt: skip
    except AnimateDiffError as error:
        raise CheckpointError(f"{job.name}: {error}") from error


def check_sizes(job: Job, factor: int) -> None:
    """Width and height suit the VAE, made larger too."""
    for side in ("width", "height"):
        size = getattr(job, side)
        if size % factor:
            lower = max(size // factor, 1) * factor
            raise CheckpointError(
                f"{job.name}: {side} {size} is no multiple of {factor}, as the VAE needs; "
                f"use {lower} or {lower + factor}"
            )
    if job.upscale is None:
        return
    for side in ("width", "height"):
        size, scale = getattr(job, side), job.upscale.scale
        if abs(size * scale / factor - round(size * scale / factor)) > 1e-6:
            lower = int(size * scale / factor)
            near = " or ".join(
                f"{n * factor / size:g}" for n in (lower, lower + 1) if n * factor > size
            )
            raise CheckpointError(
                f"{job.name}: upscale.scale {scale:g} makes {side} {size} to {size * scale:g}, no "
                f"multiple of {factor}, as the VAE needs; use {near}"
            )


def check_length(job: Job, found: FoundModel) -> None:
    """What the motion module sees at once is no longer than it knows."""
    longest, window = found.motion_config.max_frames, job.window
    name = found.motion.name
    if job.noise.type == "freenoise" and window is None:
        raise CheckpointError(
            f"{job.name}: noise.type freenoise repeats a window's noise; set window.length (-C), "
            "or use another type"
        )
    moved = job.motion_positions != MotionPositions()
    if moved:
        _check_positions(job, found)
    if window is not None and window.length > longest and not moved:
        raise CheckpointError(
            f"{job.name}: window.length (-C) is {window.length}, but {name} knows {longest} "
            f"frames at most; lower it to {longest}"
        )
    if window is None or not divides(window, job.frames):
        if job.frames > longest and not moved:
            raise CheckpointError(
                f"{job.name}: {job.frames} frames, but {name} knows {longest} at most; set "
                f"window.length (-C) to {longest} or less, or lower frames (-L) to {longest}"
            )
        return
    if window.stride > (most := max_stride(window, job.frames)):
        raise CheckpointError(
            f"{job.name}: window.stride {window.stride} (-S {window.stride - 1}) spreads a window "
            f"over more than the {job.frames} frames; lower it to {most} (-S {most - 1}), or lower "
            "window.length (-C)"
        )


def _check_positions(job: Job, found: FoundModel) -> None:
    """The frames that are denoised together stay within the module's positions."""
    at, most = job.motion_positions, found.motion_config.max_frames - 1
    seen = job.frames
    if job.window is not None and divides(job.window, job.frames):
        seen = window_length(job.window, job.frames)
    positions = Positions(stretch=at.stretch, offset=at.offset)
    if positions.fit(seen, most + 1):
        return
    remedies = []
    if at.offset < most and seen > 1:
        remedies.append(f"stretch to {_rounded_down((most - at.offset) / (seen - 1))} or less")
    if (room := most - at.stretch * (seen - 1)) >= 0:
        remedies.append(f"offset to {_rounded_down(room)} or less")
    raise CheckpointError(
        f"{job.name}: motion_positions reach {positions.last(seen):g} with {seen} frames together, "
        f"but {found.motion.name} has positions 0 to {most}; lower {', or '.join(remedies)}"
    )


def _rounded_down(value: float) -> str:
    return f"{math.floor(value * 1000 + 1e-6) / 1000:g}"


def _text_layers(found: FoundModel) -> tuple[int, ...]:
    """How many layers each text encoder has, as far as files and family say."""
    if not found.base.is_dir():
        return _LAYERS.get(found.family, ())
    files = sorted(found.base.glob("text_encoder*/config.json"))
    return tuple(_layers_of(file) for file in files)


def _layers_of(file: Path) -> int:
    layers = read_config_json(file).get("num_hidden_layers", _DEFAULT_LAYERS)
    if not isinstance(layers, int):
        raise refused_json(file, f"says num_hidden_layers {printable(layers)}")
    return layers
