"""An estimate of a planned job's memory, and the settings that need less of it.

Legend: f frames, c channels, h w latent size.
"""

from dataclasses import dataclass

import psutil
import torch
from torch import nn

from ..errors import AnimateDiffError
from .jobs import Planned
from .models import FoundModel

UNET_FEATURES = 28
"""At its peak a forward holds about as much as this many times the first level's features. Counted
over every allocation on SD1.5 (26.1), SDXL (28.1) and the tiny model (25.4), at any size."""
_TILE = 512
"""Side of a tile in pixels, where the VAE decodes in tiles."""
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
    def activations(self) -> int:
        """The larger of denoising and decoding."""
        return max(self.denoising, self.decoding)

    @property
    def peak(self) -> int:
        """Weights and the larger of denoising and decoding."""
        return self.weights + self.activations


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
    decoded = min(height * width, _TILE**2) if settings.tiles else height * width
    latents = frames * (height // factor) * (width // factor)
    together = min(settings.decode_chunk, frames)
    return Need(
        weights=num_weights * itemsize,
        denoising=UNET_FEATURES * latents * channels[0] * itemsize,
        decoding=VAE_FEATURES * together * decoded * channels[1] * 4,
    )


def need_of(planned: Planned, dtype: torch.dtype, settings: MemorySettings = FASTEST) -> Need:
    """Estimate without loading anything; the models of conditions are not counted."""
    job, found = planned.job, planned.found
    base = found.base
    width, height = job.final_size
    frames = job.frames if job.window is None else min(job.window.length, job.frames)
    return needed(
        num_weights=num_parameters(found),
        channels=(base.unet.config.block_out_channels[0], base.vae.config.block_out_channels[0]),
        shape=(frames, height, width),
        factor=found.vae_scale_factor,
        itemsize=dtype.itemsize,
        settings=settings,
    )


def check_memory(planned: Planned, dtype: torch.dtype, device: torch.device) -> None:
    """Raise if a job needs more memory than a device has, even with the leanest settings."""
    room, job = memory_of(device), planned.job
    needs = {settings: need_of(planned, dtype, settings) for settings in memory_fallbacks(device)}
    least = min(_on_device(need, settings) for settings, need in needs.items())
    if least <= room:
        return
    settings, need = list(needs.items())[-1]
    share = (room - _on_device(need, settings) + need.activations) / need.activations
    window = "window.length (-C)" if job.window is not None else "frames (-L)"
    frames = job.frames if job.window is None else min(job.window.length, job.frames)
    remedy = "use a smaller base model, or --dtype fp16 or bf16"
    if (fewer := int(frames * share)) >= 1:
        step = 8 * planned.found.vae_scale_factor
        width, height = (int(side * share**0.5) // step * step for side in (job.width, job.height))
        smaller = f", or width and height to {width} x {height}" if width and height else ""
        remedy = f"lower {window} to {fewer}{smaller}"
    raise AnimateDiffError(
        f"needs {least / 1e9:.1f} GB of memory at least and {device} has {room / 1e9:.1f} GB; "
        f"{remedy}"
    )


def memory_of(device: torch.device) -> int:
    """Bytes that a device has in all."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return int(psutil.virtual_memory().total)


def _on_device(need: Need, settings: MemorySettings) -> int:
    """Bytes of the device; offloaded weights are in main memory."""
    return need.activations + (0 if settings.offload else need.weights)


def num_parameters(found: FoundModel) -> int:
    """Weights of a model with its motion module."""
    base = found.base
    models: tuple[nn.Module, ...] = (base.unet, base.vae, *base.text_encoders, found.motion)
    return sum(parameter.numel() for model in models for parameter in model.parameters())
