"""The VAE's decoder: latents to frames.

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

    Chunks that overflow a VAE in half precision are decoded again in fp32, and `on_overflow` is
    called. Raises ClipError if the VAE gives no numbers in fp32 either. A GPU decodes one chunk
    while the one before is copied; the program waits for it once, at the end.
    """
    frames = latents[0].transpose(0, 1) / vae.config.scaling_factor  # f c h w
    parts = frames.split(chunk)
    images, finite = map(list, zip(*[_to_uint8(_pixels(vae, p)) for p in parts], strict=True))
    for number, good in enumerate(torch.stack(finite).tolist()):
        if good:
            continue
        if vae.dtype != torch.float32:
            if on_overflow is not None:
                on_overflow()
            images[number], again = _to_uint8(_pixels_in_fp32(vae, parts[number]))
            good = bool(again)
        if not good:
            raise ClipError("the VAE gives values that are no numbers; use another one (vae)")
    return torch.cat(images).permute(0, 2, 3, 1).contiguous().numpy()


def _to_uint8(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """f c h w uint8 on the CPU, or on the way there until the device is synchronised; and whether
    all pixels were finite, a scalar on the device."""
    finite = torch.isfinite(pixels).all()
    values = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().byte()
    if pixels.device.type != "cuda":
        return values.cpu(), finite
    pinned = torch.empty(values.shape, dtype=torch.uint8, pin_memory=True)
    return pinned.copy_(values, non_blocking=True), finite


def _pixels(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """f c h w in fp32, -1..1 and a little beyond."""
    pixels: Tensor = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
    return pixels.float()


def _pixels_in_fp32(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Decode with the VAE in fp32; afterwards its weights are what they were before."""
    half = vae.dtype
    nn.Module.to(vae, dtype=torch.float32)
    try:
        return _pixels(vae, latents)
    finally:
        nn.Module.to(vae, dtype=half)
