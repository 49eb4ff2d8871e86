"""From noise to latents.

Legend: b batch, f frames, k frames of a window, c channels, h w latent size, n tokens, d features.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from ..jobs import Window
from ..motion import AnimatedUNet, Conditions
from .guidance import Guidance, guide
from .image_unet import ImageUNet
from .known_region import Kept
from .noise import step_noise
from .residuals import Control, Moment, add_residuals
from .windows import Part, context_windows, divides
from .x0_cache import Reuse

FrameText = Callable[[Tensor], Tensor]
"""From frame numbers, k, on the CPU, to their text, b k n d: what a long clip does not hold for all
frames."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """A part of the clip with a text of its own."""

    text: Tensor | FrameText
    """As in Guided."""
    mask: Tensor
    """1 1 f h w, 0 to 1: how far the text acts."""
    conditions: Conditions | None = None


@dataclass(frozen=True, kw_only=True)
class Guided:
    """What a clip is led to and away from."""

    text: Tensor | FrameText
    """b n d, b f n d, or a function of the frames."""
    negative_text: Tensor | FrameText
    conditions: Conditions | None = None
    negative_conditions: Conditions | None = None
    guidance: Guidance = field(default_factory=Guidance)
    controls: tuple[Control, ...] = ()
    regions: tuple[Region, ...] = ()
    """Later ones lie in front."""


@dataclass(frozen=True)
class Progress:
    """How far a loop is."""

    step: int
    """Steps done."""
    steps: int
    window: int
    """Windows done of the step in progress; 0 when it is over."""
    windows: int
    """Windows of that step; 1 where the clip is not divided."""
    latents: Tensor
    """b c f h w after the last step that is done."""


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
    kept: Kept | None = None,
    fast: int = 0,
) -> Tensor:
    """Sample clips with classifier-free guidance.

    latents: unit-variance noise b c f h w (init_noise_sigma is applied here); text and
    negative_text: b n d or b f n d. `generator` feeds schedulers that add noise. `on_step` is
    told (done, steps). Guidance 1 or less needs no negative half and skips it; `guidance`, where
    given, says more than guidance_scale and stands in its place. `windows`: how a clip longer than
    the motion module's is divided. `source`: clean latents b c f h w that step `start`, counted
    from 0, begins from, with the noise added to them. `controls` add to every call of the UNet;
    `kept` are parts of the clip that are given. `fast`: see reuse.py. Returns b c f h w.
    """
    guided = Guided(
        text=text, negative_text=negative_text, conditions=conditions,
        negative_conditions=negative_conditions or conditions,
        guidance=guidance or Guidance(scale=guidance_scale), controls=tuple(controls),
    )  # fmt: skip
    x = latents
    for progress in denoise_steps(
        animated, scheduler, latents, guided, steps=steps, generator=generator, windows=windows,
        start=start, source=source, kept=kept, fast=fast,
    ):  # fmt: skip
        x = progress.latents
        if on_step is not None and progress.window == 0:
            on_step(progress.step, progress.steps)
    return x


def denoise_steps(
    animated: AnimatedUNet | ImageUNet,
    scheduler: SchedulerMixin,
    latents: Tensor,
    guided: Guided,
    *,
    steps: int,
    generator: torch.Generator | None = None,
    windows: Window | None = None,
    start: int = 0,
    source: Tensor | None = None,
    kept: Kept | None = None,
    fast: int = 0,
) -> Iterator[Progress]:
    """The same step by step, and within a step window by window.

    The schedule runs in the latents' dtype, the model in its own. The scheduler's timesteps stay on
    the CPU, where it looks up its numbers: a GPU would be waited for at every look.
    """
    timesteps = _timesteps(scheduler, steps, start)
    whole = not timesteps.is_floating_point()
    times = (timesteps if whole else timesteps.float()).to(latents.device)  # MPS has no fp64
    x = _begin(scheduler, timesteps, latents, source)
    if kept is not None:
        x = kept.blend(x, latents, scheduler, times[0])
    extra = step_noise(scheduler, x, generator)
    divided = windows if divides(windows, x.shape[2]) else None
    before, total = len(scheduler.timesteps) - len(timesteps), len(scheduler.timesteps)
    reuse = Reuse(fast, scheduler)
    for index, timestep in enumerate(timesteps):
        moment = Moment(step=before + index, steps=total, frames=None)
        given = scheduler.scale_model_input(x, timestep)
        parts: list[Part] = []
        predicted = reuse.predict(given, timestep, index, len(timesteps))
        if predicted is None:
            if divided is not None:
                parts = context_windows(divided, x.shape[2], index)
            here = Progress(index, len(timesteps), 0, len(parts) or 1, x)
            time = times[index]
            predicted = yield from _modelled(animated, given, time, guided, moment, parts, here)
            reuse.keep(given, predicted, timestep)
        x = scheduler.step(predicted, timestep, x, **extra, return_dict=False)[0]
        if kept is not None:
            after = times[index + 1] if index + 1 < len(times) else None
            x = kept.blend(x, latents, scheduler, after)
        yield Progress(index + 1, len(timesteps), 0, len(parts) or 1, x)


def _modelled(
    animated: AnimatedUNet | ImageUNet,
    given: Tensor,
    timestep: Tensor,
    guided: Guided,
    moment: Moment,
    parts: Sequence[Part],
    here: Progress,
) -> Generator[Progress, None, Tensor]:
    """The guided prediction, b c f h w, of the whole clip or of its parts, which are counted."""
    if not parts:
        return _predict(animated, given, timestep, guided, moment)
    predicted = torch.zeros_like(given)
    for number, part in enumerate(parts, start=1):
        inside = replace(moment, frames=part.frames)
        part.add_to(predicted, _predict(animated, given, timestep, guided, inside))
        if number < len(parts):
            yield replace(here, window=number)
    return predicted


@torch.no_grad()
def _predict(
    animated: AnimatedUNet | ImageUNet,
    given: Tensor,
    timestep: Tensor,
    guided: Guided,
    moment: Moment,
) -> Tensor:
    """The guided prediction, b c f h w, for the whole clip or for a window's frames of it."""
    total, numbers = given.shape[2], moment.frames
    frames = None if numbers is None else numbers.to(given.device, non_blocking=True)
    part = given if frames is None else given.index_select(2, frames)
    part = part.to(next(animated.unet.parameters()).dtype)

    def call(
        text: Tensor | FrameText, conditions: Conditions | None, *, away: bool = False
    ) -> Tensor:
        if frames is not None and conditions is not None:
            conditions = conditions.at(frames, total)
        states = _text_at(text, numbers, total)
        here = replace(moment, away=away)
        conditions = add_residuals(guided.controls, here, part, timestep, states, conditions)
        predicted: Tensor = animated(part, timestep, states, conditions)
        return predicted.to(given.dtype)

    scale = guided.guidance.at(moment.step, moment.steps)
    if scale > 1 and _joins(animated, part, guided):
        texts = [_text_at(text, numbers, total) for text in (guided.text, guided.negative_text)]
        if texts[0].shape == texts[1].shape:
            both = animated(torch.cat([part, part]), timestep, torch.cat(texts)).to(given.dtype)
            predicted, without = both.chunk(2)
            return guide(predicted, without, scale, guided.guidance.rescale)
    predicted = call(guided.text, guided.conditions)
    for region in guided.regions:
        mask = region.mask if frames is None else region.mask.index_select(2, frames)
        there = call(region.text, region.conditions)
        predicted = torch.lerp(predicted, there, mask.to(there))
    if scale > 1:
        without = call(guided.negative_text, guided.negative_conditions, away=True)
        predicted = guide(predicted, without, scale, guided.guidance.rescale)
    return predicted


def _joins(animated: AnimatedUNet | ImageUNet, part: Tensor, guided: Guided) -> bool:
    """Whether both halves of guidance are one call: on devices that a small clip does not fill."""
    more = (guided.conditions, guided.negative_conditions, guided.regions, guided.controls)
    return part.numel() <= getattr(animated, "joint_latents", 0) and not any(more)


def _text_at(text: Tensor | FrameText, frames: Tensor | None, total: int) -> Tensor:
    """b n d where all frames have one text, else b k n d."""
    if callable(text):
        return text(torch.arange(total) if frames is None else frames)
    if frames is None or text.ndim == 3:
        return text
    return text.index_select(1, frames.to(text.device, non_blocking=True))


def num_steps(scheduler: SchedulerMixin, steps: int, start: int = 0) -> int:
    """How many `Progress.steps` a loop has: some schedulers take more than asked, in halves."""
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


def _begin(
    scheduler: SchedulerMixin, timesteps: Tensor, noise: Tensor, source: Tensor | None
) -> Tensor:
    """What the first step is given, b c f h w: noise alone, or noise upon a clean clip."""
    if source is None:
        first: Tensor = noise * scheduler.init_noise_sigma
    else:
        first = scheduler.add_noise(source, noise, timesteps[:1])
    return first
