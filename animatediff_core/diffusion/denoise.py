"""From noise to latents to frames.

Legend: b batch, f frames, c channels, h w latent size, n tokens, d features.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from diffusers.models import AutoencoderKL
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor, nn

from ..errors import ClipError
from ..motion import AnimatedUNet, Conditions
from .guidance import Guidance, guide
from .noise import step_noise
from .still import StillUNet


def denoise(
    animated: AnimatedUNet | StillUNet,
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
) -> Tensor:
    """Sample clips with classifier-free guidance.

    latents: unit-variance noise b c f h w (init_noise_sigma is applied here); text and
    negative_text: b n d or b f n d. `generator` feeds schedulers that add noise. `on_step` is
    told (done, steps). Guidance 1 or less needs no negative half and skips it; `guidance`, where
    given, says more than guidance_scale and stands in its place. Returns b c f h w.
    """
    x = latents
    guided = (
        guidance or Guidance(scale=guidance_scale),
        negative_text,
        negative_conditions or conditions,
    )
    for done, total, stepped in denoise_steps(
        animated, scheduler, latents, text, guided, steps, conditions, generator
    ):
        x = stepped
        if on_step is not None:
            on_step(done, total)
    return x


def denoise_steps(
    animated: AnimatedUNet | StillUNet,
    scheduler: SchedulerMixin,
    latents: Tensor,
    text: Tensor,
    guided: tuple[Guidance, Tensor, Conditions | None],
    steps: int,
    conditions: Conditions | None,
    generator: torch.Generator | None,
) -> Iterator[tuple[int, int, Tensor]]:
    """The same step by step: yields (done, steps, latents). `guided` is the guidance with
    the negative text and conditions. The schedule runs in the latents' dtype, the model in its own.
    """
    guidance, negative, negative_conditions = guided
    dtype = next(animated.unet.parameters()).dtype
    scheduler.set_timesteps(steps, device=latents.device)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # else looked up by timestep: wrong where two are alike
    x = latents * scheduler.init_noise_sigma
    extra = step_noise(scheduler, x, generator)
    for done, timestep in enumerate(scheduler.timesteps, start=1):
        with torch.no_grad():
            given = scheduler.scale_model_input(x, timestep).to(dtype)
            predicted = animated(given, timestep, text, conditions).to(x.dtype)
            if (scale := guidance.at(done - 1, len(scheduler.timesteps))) > 1:
                without = animated(given, timestep, negative, negative_conditions).to(x.dtype)
                predicted = guide(predicted, without, scale, guidance.rescale)
            x = scheduler.step(predicted, timestep, x, **extra, return_dict=False)[0]
        yield done, len(scheduler.timesteps), x


@torch.no_grad()
def decode(
    vae: AutoencoderKL,
    latents: Tensor,
    *,
    chunk: int = 8,
    on_overflow: Callable[[], None] | None = None,
) -> np.ndarray:
    """One clip's latents, 1 c f h w, to f h w 3 uint8, `chunk` frames at a time.

    What overflows a VAE in half precision is decoded again in fp32, and `on_overflow` is told.
    ClipError where the VAE gives no numbers in fp32 either.
    """
    frames = latents[0].transpose(0, 1) / vae.config.scaling_factor  # f c h w
    pictures = []
    for part in frames.split(chunk):
        pixels = _pixels(vae, part)
        if vae.dtype != torch.float32 and not torch.isfinite(pixels).all():
            if on_overflow is not None:
                on_overflow()
            pixels = _pixels_in_fp32(vae, part)
        if not torch.isfinite(pixels).all():
            raise ClipError("the VAE gives values that are no numbers; use another one (vae)")
        pictures.append(((pixels / 2 + 0.5).clamp(0, 1) * 255).round().byte().cpu())
    return torch.cat(pictures).permute(0, 2, 3, 1).contiguous().numpy()


def _pixels(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """f c h w in fp32, -1..1 and a little beyond."""
    pixels: Tensor = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
    return pixels.float()


def _pixels_in_fp32(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """The same, the VAE in fp32 for this once: its weights are then what they were before."""
    half = vae.dtype
    nn.Module.to(vae, dtype=torch.float32)
    try:
        return _pixels(vae, latents)
    finally:
        nn.Module.to(vae, dtype=half)
