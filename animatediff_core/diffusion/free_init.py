"""FreeInit: a clip is sampled again from noise with the low frequencies of the last result.

The first noise of a clip is as lively in time as in space, and a model follows it. Its low
frequencies are replaced by those of a clip already sampled, brought back to the noisiest step; the
high ones are new (arXiv 2312.07537, section 4).

Legend: b batch, f frames, c channels, h w latent size.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..jobs import FreeInit

_CLIP = (-3, -2, -1)
"""f h w."""


def steps_of(settings: FreeInit, steps: int) -> list[int]:
    """Denoising steps of each iteration; `fast` begins with few."""
    if not settings.fast:
        return [steps] * settings.iterations
    return [max(1, steps * (i + 1) // settings.iterations) for i in range(settings.iterations)]


def renewed_noise(
    clip: Tensor, first: Tensor, fresh: Tensor, alpha: float, low_pass: Tensor
) -> Tensor:
    """Noise to start from again, from the clean latents of the last result.

    clip, first (the noise that the very first result began with) and fresh: b c f h w; alpha: the
    product of alphas at the noisiest step, 0..1; low_pass: f h w. In fp32.
    """
    noisy = alpha**0.5 * clip.float() + (1 - alpha) ** 0.5 * first.float()
    slow = torch.fft.fftn(noisy, dim=_CLIP) * low_pass
    quick = torch.fft.fftn(fresh.float(), dim=_CLIP) * (1 - low_pass)
    mixed: Tensor = torch.fft.ifftn(slow + quick, dim=_CLIP).real
    return mixed


def low_pass(settings: FreeInit, frames: int, height: int, width: int) -> Tensor:
    """The filter: the share of each frequency that passes, f h w in the order of torch.fft."""
    in_time = settings.spatial_stop / settings.temporal_stop * _frequencies(frames)
    square = (
        in_time[:, None, None] ** 2 + _frequencies(height)[:, None] ** 2 + _frequencies(width) ** 2
    )  # f h w
    stop = settings.spatial_stop
    filters: dict[str, Callable[[Tensor], Tensor]] = {
        "butterworth": lambda square: 1 / (1 + (square / stop**2) ** settings.order),
        "gaussian": lambda square: torch.exp(-square / (2 * stop**2)),
        "ideal": lambda square: (square <= 2 * stop).float(),  # the authors' bound
    }
    return filters[settings.filter](square)


def _frequencies(count: int) -> Tensor:
    """Frequencies in the order of torch.fft as fractions of the highest, -1..1."""
    shares: Tensor = 2 * torch.fft.fftfreq(count)
    return shares
