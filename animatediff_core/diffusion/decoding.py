"""From latents to frames.

Legend: f frames, c channels, h w size.
"""

from collections.abc import Callable

import numpy as np
import torch
from diffusers.models import AutoencoderKL
from torch import Tensor, nn

from ..errors import ClipError


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
    ClipError where the VAE gives no numbers in fp32 either. A GPU decodes one chunk while the one
    before is copied; it is waited for once, when all are on their way.
    """
    frames = latents[0].transpose(0, 1) / vae.config.scaling_factor  # f c h w
    parts = frames.split(chunk)
    pictures, sound = map(list, zip(*[_shown(_pixels(vae, part)) for part in parts], strict=True))
    for number, good in enumerate(torch.stack(sound).tolist()):
        if good:
            continue
        if vae.dtype != torch.float32:
            if on_overflow is not None:
                on_overflow()
            pictures[number], again = _shown(_pixels_in_fp32(vae, parts[number]))
            good = bool(again)
        if not good:
            raise ClipError("the VAE gives values that are no numbers; use another one (vae)")
    return torch.cat(pictures).permute(0, 2, 3, 1).contiguous().numpy()


def _shown(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """f c h w uint8 on the CPU, or on their way there until the device is next waited for; and
    whether all were numbers, a scalar where the pixels are."""
    sound = torch.isfinite(pixels).all()
    levels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().byte()
    if pixels.device.type != "cuda":
        return levels.cpu(), sound
    pinned = torch.empty(levels.shape, dtype=torch.uint8, pin_memory=True)
    return pinned.copy_(levels, non_blocking=True), sound


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
