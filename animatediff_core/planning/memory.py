"""An estimate of a planned job's memory, and the settings that need less of it.

Legend: f frames, c channels, h w latent size.
"""

from dataclasses import dataclass

import torch
from torch import nn

from .jobs import Planned

UNET_FEATURES = 28
"""At its peak a forward holds about as much as this many times the first level's features. Counted
over every allocation on SD1.5 (26.1), SDXL (28.1) and the tiny model (25.4), at any size."""
VAE_FEATURES = 6
"""For a VAE's decoder, in features of the image's size; counted in the same way."""


@dataclass(frozen=True, kw_only=True)
class MemorySettings:
    """How a run saves memory."""

    decode_chunk: int = 8
    """Frames that the VAE decodes together, 1 or more."""
    offload: bool = False
    """Whether the weights wait in main memory and come to the GPU part by part."""
    tiles: bool = False
    """Whether large frames are decoded in overlapping tiles, which changes them slightly."""

    def __str__(self) -> str:
        words = [f"{self.decode_chunk} frame{'s' * (self.decode_chunk > 1)} decoded at a time"]
        words += ["weights in main memory"] * self.offload + ["decoding in tiles"] * self.tiles
        return ", ".join(words)


FASTEST = MemorySettings()


def memory_fallbacks(device: torch.device) -> list[MemorySettings]:
    """From the fastest to the leanest; only a GPU has main memory beside its own."""
    offload = device.type == "cuda"
    small = MemorySettings(decode_chunk=1)
    offloaded = [MemorySettings(decode_chunk=1, offload=True)] * offload
    return [FASTEST, small, *offloaded, MemorySettings(decode_chunk=1, offload=offload, tiles=True)]


def next_fallback(settings: MemorySettings, device: torch.device) -> MemorySettings | None:
    """The next leaner settings of a device, or None where there are none."""
    fallbacks = memory_fallbacks(device)
    after = fallbacks[fallbacks.index(settings) + 1 :] if settings in fallbacks else []
    return after[0] if after else None


@dataclass(frozen=True)
class Need:
    """Bytes at the peak of each part of a run."""

    weights: int
    denoising: int
    """Features of one call of the UNet."""
    decoding: int
    """Features of the VAE, fp32."""

    @property
    def peak(self) -> int:
        """Weights and the larger of denoising and decoding."""
        return self.weights + max(self.denoising, self.decoding)


def needed(
    *,
    num_weights: int,
    channels: tuple[int, int],
    shape: tuple[int, int, int],
    factor: int,
    itemsize: int,
    settings: MemorySettings = FASTEST,
) -> Need:
    """An estimate for one job, good to about a tenth for what is counted.

    channels: of the UNet's and of the VAE's first level; shape: frames of a window, height and
    width in pixels; factor: pixels for one latent; itemsize: bytes of one number of the UNet.
    """
    frames, height, width = shape
    latents = frames * (height // factor) * (width // factor)
    together = min(settings.decode_chunk, frames)
    return Need(
        weights=num_weights * itemsize,
        denoising=UNET_FEATURES * latents * channels[0] * itemsize,
        decoding=VAE_FEATURES * together * height * width * channels[1] * 4,
    )


def need_of(planned: Planned, dtype: torch.dtype, settings: MemorySettings = FASTEST) -> Need:
    """Estimate without loading anything; the models of conditions are not counted."""
    job, found = planned.job, planned.found
    base = found.base
    scale = 1.0 if job.upscale is None else job.upscale.scale
    frames = job.frames if job.window is None else min(job.window.length, job.frames)
    return needed(
        num_weights=_size(base.unet, base.vae, *base.text_encoders, found.motion),
        channels=(base.unet.config.block_out_channels[0], base.vae.config.block_out_channels[0]),
        shape=(frames, round(job.height * scale), round(job.width * scale)),
        factor=found.vae_scale_factor,
        itemsize=dtype.itemsize,
        settings=settings,
    )


def _size(*models: nn.Module) -> int:
    return sum(parameter.numel() for model in models for parameter in model.parameters())
