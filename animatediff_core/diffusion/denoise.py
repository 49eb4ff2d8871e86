"""From noise to latents to frames.

Legend: b batch, f frames, c channels, h w latent size, n tokens, d features.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from diffusers.models import AutoencoderKL
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from ..motion import AnimatedUNet, Conditions
from .still import StillUNet


def draw_noise(seed: int, shape: tuple[int, int, int, int, int]) -> Tensor:
    """Unit-variance noise b c f h w, independent for each frame, drawn on the CPU.

    `seed` is 0..2**64-1. The same seed starts from the same noise on every device.
    """
    return torch.randn(shape, generator=seeded(seed))


def seeded(seed: int) -> torch.Generator:
    """A CPU generator for any seed of 64 bits."""
    signed = seed - 2**64 if seed >= 2**63 else seed
    return torch.Generator().manual_seed(signed)


def denoise(
    animated: AnimatedUNet | StillUNet,
    scheduler: SchedulerMixin,
    latents: Tensor,
    text: Tensor,
    negative_text: Tensor,
    *,
    steps: int = 25,
    guidance_scale: float = 7.5,
    conditions: Conditions | None = None,
    negative_conditions: Conditions | None = None,
    generator: torch.Generator | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Sample clips with classifier-free guidance.

    latents: unit-variance noise b c f h w (init_noise_sigma is applied here); text and
    negative_text: b n d or b f n d. `generator` feeds schedulers that add noise. `on_step` is
    told (done, steps). Guidance 1 or less needs no negative half and skips it. Returns b c f h w.
    """
    x = latents
    guided = (guidance_scale, negative_text, negative_conditions or conditions)
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
    guided: tuple[float, Tensor, Conditions | None],
    steps: int,
    conditions: Conditions | None,
    generator: torch.Generator | None,
) -> Iterator[tuple[int, int, Tensor]]:
    """The same step by step: yields (done, steps, latents). `guided` is the guidance scale with
    the negative text and conditions. The schedule runs in the latents' dtype, the model in its own.
    """
    scale, negative, negative_conditions = guided
    dtype = next(animated.unet.parameters()).dtype
    scheduler.set_timesteps(steps, device=latents.device)
    x = latents * scheduler.init_noise_sigma
    extra = {"generator": generator} if _takes_generator(scheduler) else {}
    for done, timestep in enumerate(scheduler.timesteps, start=1):
        with torch.no_grad():
            given = scheduler.scale_model_input(x, timestep).to(dtype)
            predicted = animated(given, timestep, text, conditions).to(x.dtype)
            if scale > 1:
                without = animated(given, timestep, negative, negative_conditions).to(x.dtype)
                predicted = without + scale * (predicted - without)
            x = scheduler.step(predicted, timestep, x, **extra, return_dict=False)[0]
        yield done, len(scheduler.timesteps), x


def _takes_generator(scheduler: SchedulerMixin) -> bool:
    from inspect import signature

    return "generator" in signature(scheduler.step).parameters


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor, *, chunk: int = 8) -> np.ndarray:
    """One clip's latents, 1 c f h w, to f h w 3 uint8, `chunk` frames at a time."""
    frames = latents[0].transpose(0, 1) / vae.config.scaling_factor  # f c h w
    pictures = []
    for part in frames.split(chunk):
        pixels = vae.decode(part.to(vae.dtype), return_dict=False)[0].float()
        pictures.append(((pixels / 2 + 0.5).clamp(0, 1) * 255).round().byte().cpu())
    return torch.cat(pictures).permute(0, 2, 3, 1).contiguous().numpy()
