"""Noise, drawn on the CPU: the initial noise of a clip and the noise of a sampler's steps.

Legend: b batch, f frames, c channels, h w latent size.
"""

import math
from collections.abc import Callable
from inspect import signature

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from ..jobs.sampling import Noise

Shape = tuple[int, int, int, int, int]
"""b c f h w."""
_STATE_WORDS = slice(24, 24 + 624 * 8)
"""Bytes of the 624 words, 64 bits each, in the state of a CPU generator (since torch 0.4)."""


def seeded(seed: int) -> torch.Generator:
    """A CPU generator for a seed of 64 bits, 0..2**64-1.

    torch's Mersenne Twister is seeded with the lower 32 bits alone. If the upper 32 bits are not
    all zero, its 624 state words come from `init_by_array` (Matsumoto and Nishimura 2002), which
    reads both halves.
    """
    generator = torch.Generator().manual_seed(seed)
    if seed >= 2**32:
        twister = np.random.RandomState([seed % 2**32, seed // 2**32]).get_state(legacy=False)
        words = twister["state"]["key"].astype(np.uint64)
        state = generator.get_state()
        state[_STATE_WORDS] = torch.from_numpy(words.view(np.uint8))
        generator.set_state(state)
    return generator


def draw_noise(seed: int, shape: Shape, noise: Noise | None = None) -> Tensor:
    """Unit-variance noise b c f h w, drawn on the CPU in one thread's order.

    `seed` is 0..2**64-1. The same seed starts from the same noise on every device. Without
    `noise` the frames are independent of each other.
    """
    settings = noise or Noise()
    generator = seeded(seed)
    if settings.type == "shared":
        return _one_frame(shape, generator).expand(shape).contiguous()
    if settings.frame_seeds:
        own = torch.cat([_one_frame(shape, seeded(one)) for one in settings.frame_seeds], dim=2)
    else:
        own = torch.randn(shape, generator=generator)
    if settings.type == "independent":
        return own
    if settings.type == "mixed":
        return _mixed(own, _one_frame(shape, generator), settings.alpha)
    if settings.type == "progressive":
        return _progressive(own, settings.alpha)
    raise ValueError(f"noise of type {settings.type} is not drawn here")


def _one_frame(shape: Shape, generator: torch.Generator) -> Tensor:
    batch, channels, _, height, width = shape
    return torch.randn((batch, channels, 1, height, width), generator=generator)


def _scales(alpha: float) -> tuple[float, float]:
    """Scales of the common and of the own noise, so that their sum has unit variance."""
    length = math.sqrt(1 + alpha**2)
    return alpha / length, 1 / length


def _mixed(own: Tensor, common: Tensor, alpha: float) -> Tensor:
    """arXiv 2305.10474, section 4.2: every frame has a part of one common noise."""
    shared, new = _scales(alpha)
    return shared * common + new * own


def _progressive(own: Tensor, alpha: float) -> Tensor:
    """arXiv 2305.10474, section 4.2: every frame has a part of the noise of the frame before it."""
    shared, new = _scales(alpha)
    frames = [own[:, :, 0]]
    for frame in own.unbind(dim=2)[1:]:
        frames.append(shared * frames[-1] + new * frame)
    return torch.stack(frames, dim=2)


def step_noise(
    scheduler: SchedulerMixin, latents: Tensor, generator: torch.Generator | None
) -> dict[str, torch.Generator]:
    """Keywords of a sampler's `step`: the generator of the noise of its steps.

    diffusers draws on the generator's own device, which is the CPU for those of `seeded`. DPM++
    SDE takes no generator, because it needs noise between any two noise levels; it gets a Brownian
    tree of the same seed, which is on the CPU too. latents: b c f h w.
    """
    if "generator" in signature(scheduler.step).parameters:
        return {} if generator is None else {"generator": generator}
    if hasattr(scheduler, "noise_sampler") and generator is not None:
        scheduler.noise_sampler = _brownian(scheduler, latents, generator.initial_seed())
    return {}


def _brownian(
    scheduler: SchedulerMixin, latents: Tensor, seed: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """Noise between two noise levels, unit variance."""
    from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler

    levels = scheduler.sigmas[scheduler.sigmas > 0]
    model = torch.empty(latents.shape, dtype=latents.dtype)
    tree = BrownianTreeNoiseSampler(model, levels.min().item(), levels.max().item(), seed)

    def draw(level: Tensor, following: Tensor) -> Tensor:
        drawn: Tensor = tree(level.cpu(), following.cpu())
        return drawn.to(latents)

    return draw
