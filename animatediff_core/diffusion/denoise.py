"""The sampling loop: from noise to latents.

Legend: b batch, f frames, k frames of a window, c channels, h w latent size, n tokens, d features.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from ..jobs import Window
from ..motion import AnimatedUNet, Conditions
from ..motion.conditions import NO_CONDITIONS
from .conditioning import Conditioning, FrameText, text_at
from .guidance import Guidance, guide
from .image_unet import ImageUNet
from .known_region import KnownRegion
from .noise import step_noise
from .residuals import Control, add_residuals
from .step_info import StepInfo
from .windows import ContextWindow, context_windows, is_divided
from .x0_cache import X0Cache


def denoise(
    animated: AnimatedUNet | ImageUNet,
    scheduler: SchedulerMixin,
    latents: Tensor,
    text: Tensor,
    negative_text: Tensor,
    *,
    steps: int = 25,
    guidance_scale: float = 7.5,
    guidance: Guidance | None = None,
    conditions: Conditions | None = None,
    negative_conditions: Conditions | None = None,
    generator: torch.Generator | None = None,
    on_step: Callable[[int, int], None] | None = None,
    windows: Window | None = None,
    start: int = 0,
    source: Tensor | None = None,
    controls: Sequence[Control] = (),
    known_region: KnownRegion | None = None,
    fast: int = 0,
) -> Tensor:
    """Sample clips with classifier-free guidance.

    latents: unit-variance noise b c f h w (init_noise_sigma is applied here); text and
    negative_text: b n d or b f n d. `generator` feeds schedulers that add noise. `on_step` gets
    (done, steps). A guidance scale of 1 or less skips the negative prompt; `guidance` replaces
    guidance_scale. `windows`: context windows of a clip longer than the motion module's. `source`:
    clean latents b c f h w that step `start`, counted from 0, begins from, with the noise added to
    them. `controls` add residuals to every call of the UNet; `known_region`: latents that the clip
    keeps. `fast`: see x0_cache.py. Returns b c f h w.
    """
    conditions = conditions or Conditions()
    conditioning = Conditioning(
        text=text,
        negative_text=negative_text,
        conditions=conditions,
        negative_conditions=negative_conditions or conditions,
        guidance=guidance or Guidance(scale=guidance_scale),
        controls=tuple(controls),
        known=known_region,
        source=source,
    )
    result = latents
    for info, current in denoise_steps(
        animated, scheduler, latents, conditioning, steps, generator, windows, start, fast
    ):
        result = current
        if on_step is not None and info.window == 0:
            on_step(info.step, info.steps)
    return result


def denoise_steps(
    animated: AnimatedUNet | ImageUNet,
    scheduler: SchedulerMixin,
    noise: Tensor,
    conditioning: Conditioning,
    steps: int,
    generator: torch.Generator | None = None,
    windows: Window | None = None,
    start: int = 0,
    fast: int = 0,
) -> Iterator[tuple[StepInfo, Tensor]]:
    """`denoise` step by step, and within a step window by window; latents b c f h w after the last
    complete step.

    The schedule runs in the latents' dtype, the model in its own. The scheduler's timesteps stay on
    the CPU, where it looks up its numbers: on a GPU every look-up would wait for the device.
    """
    timesteps = _timesteps(scheduler, steps, start)
    whole = not timesteps.is_floating_point()
    on_device = (timesteps if whole else timesteps.float()).to(noise.device)  # MPS has no fp64
    latents = _initial_latents(scheduler, timesteps, noise, conditioning.source)
    known = conditioning.known
    if known is not None:
        latents = known.blend(latents, noise, scheduler, on_device[0])
    step_kwargs = step_noise(scheduler, latents, generator)
    count = len(timesteps)
    skipped = len(scheduler.timesteps) - count
    cache = X0Cache(fast, scheduler)
    for index, timestep in enumerate(timesteps):
        model_input = scheduler.scale_model_input(latents, timestep)
        parts: list[ContextWindow] = []
        noise_pred = cache.predict(model_input, timestep, index, count)
        if noise_pred is None:
            if windows is not None and is_divided(windows, noise.shape[2]):
                parts = context_windows(windows, noise.shape[2], index)
            info = StepInfo(step=index, steps=count, skipped=skipped, windows=len(parts) or 1)
            noise_pred = yield from _predict_windows(
                animated, model_input, on_device[index], conditioning, info, parts, latents
            )
            cache.store(model_input, noise_pred, timestep)
        latents = scheduler.step(noise_pred, timestep, latents, **step_kwargs, return_dict=False)[0]
        if known is not None:
            next_timestep = on_device[index + 1] if index + 1 < count else None
            latents = known.blend(latents, noise, scheduler, next_timestep)
        yield StepInfo(step=index + 1, steps=count, windows=len(parts) or 1), latents


def _predict_windows(
    animated: AnimatedUNet | ImageUNet,
    model_input: Tensor,
    timestep: Tensor,
    conditioning: Conditioning,
    info: StepInfo,
    windows: Sequence[ContextWindow],
    latents: Tensor,
) -> Generator[tuple[StepInfo, Tensor], None, Tensor]:
    """The guided prediction, b c f h w, of the whole clip or of its context windows; yields between
    windows, with the latents before the step."""
    if not windows:
        return _predict(animated, model_input, timestep, conditioning, info, None)
    noise_pred = torch.zeros_like(model_input)
    for number, window in enumerate(windows, start=1):
        part = _predict(animated, model_input, timestep, conditioning, info, window.frames)
        window.add_to(noise_pred, part)
        if number < len(windows):
            yield replace(info, window=number), latents
    return noise_pred


@torch.no_grad()
def _predict(
    animated: AnimatedUNet | ImageUNet,
    model_input: Tensor,
    timestep: Tensor,
    conditioning: Conditioning,
    info: StepInfo,
    window: Tensor | None,
) -> Tensor:
    """The guided prediction, b c f h w, of the whole clip or of a window's frame numbers, k."""
    total = model_input.shape[2]
    frames = None if window is None else window.to(model_input.device, non_blocking=True)
    sample = model_input if frames is None else model_input.index_select(2, frames)
    sample = sample.to(next(animated.unet.parameters()).dtype)

    scale = conditioning.guidance.at(info.index, info.scheduled)
    read: float | None = None
    if animated.unet.config.time_cond_proj_dim is not None:  # LCM's UNet, which reads the scale
        read, scale = max(scale, 1.0), 1.0

    def call(text: Tensor | FrameText, conditions: Conditions, *, uncond: bool = False) -> Tensor:
        if read is not None:
            conditions = replace(conditions, guidance_scale=read)
        if frames is not None:
            conditions = conditions.at(frames, total)
        states = text_at(text, window, total)
        acting = [one for one in conditioning.controls if one.acts(info, uncond=uncond)]
        conditions = add_residuals(acting, sample, timestep, states, conditions, window)
        predicted: Tensor = animated(sample, timestep, states, conditions)
        return predicted.to(model_input.dtype)

    if scale > 1 and _joins(animated, sample, conditioning):
        pair = [text_at(t, window, total) for t in (conditioning.text, conditioning.negative_text)]
        if pair[0].shape == pair[1].shape:
            both = animated(torch.cat([sample, sample]), timestep, torch.cat(pair))
            cond, uncond = both.to(model_input.dtype).chunk(2)
            return guide(cond, uncond, scale, conditioning.guidance.rescale)
    cond = call(conditioning.text, conditioning.conditions)
    for region in conditioning.regions:
        mask = region.mask if frames is None else region.mask.index_select(2, frames)
        inside = call(region.text, region.conditions)
        cond = torch.lerp(cond, inside, mask.to(inside))
    if scale <= 1:
        return cond
    uncond = call(conditioning.negative_text, conditioning.negative_conditions, uncond=True)
    return guide(cond, uncond, scale, conditioning.guidance.rescale)


def _joins(animated: AnimatedUNet | ImageUNet, sample: Tensor, conditioning: Conditioning) -> bool:
    """Whether both halves of guidance are one call: on devices that a small clip does not fill."""
    halves = (conditioning.conditions, conditioning.negative_conditions)
    plain = all(one == NO_CONDITIONS for one in halves)
    more = conditioning.regions or conditioning.controls
    return sample.numel() <= getattr(animated, "joint_latents", 0) and plain and not more


def num_steps(scheduler: SchedulerMixin, steps: int, start: int = 0) -> int:
    """How many steps a run has: some schedulers take more than asked, in halves."""
    return len(_timesteps(scheduler, steps, start))


def _timesteps(scheduler: SchedulerMixin, steps: int, start: int) -> Tensor:
    if not 0 <= start < steps:
        raise ValueError(f"start must be 0 up to steps - 1 = {steps - 1}, got {start}")
    scheduler.set_timesteps(steps)
    first = start * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)  # else looked up by timestep: wrong where two are alike
    timesteps: Tensor = scheduler.timesteps[first:]
    return timesteps


def _initial_latents(
    scheduler: SchedulerMixin, timesteps: Tensor, noise: Tensor, source: Tensor | None
) -> Tensor:
    """The latents before the first step, b c f h w: noise alone, or clean latents with noise."""
    if source is None:
        latents: Tensor = noise * scheduler.init_noise_sigma
    else:
        latents = scheduler.add_noise(source, noise, timesteps[:1])
    return latents
