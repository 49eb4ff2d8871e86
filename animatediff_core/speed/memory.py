"""What a run needs of memory, and what it can give up for less, in which order.

Legend: f frames, c channels, h w latent size.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from diffusers.models import AutoencoderKL
from torch import nn

from ..checkpoints.base_model import BaseModel
from ..motion import MotionModule
from ..motion.module import TemporalTransformer

UNET_FEATURES = 28
"""At its peak a forward holds about as much as this many times the first level's features. Counted
over every allocation on SD1.5 (26.1), SDXL (28.1) and the tiny model (25.4), at any size."""
VAE_FEATURES = 6
"""The same of a VAE's decoder, in features of the pictures' size; counted in the same way."""


@dataclass(frozen=True, kw_only=True)
class Thrift:
    """How memory is saved."""

    decode_chunk: int = 8
    """Frames that the VAE decodes together, 1 or more."""
    offload: bool = False
    """Whether the weights wait in main memory and come to the GPU part by part."""
    tiles: bool = False
    """Whether large frames are decoded in overlapping tiles, which changes them slightly."""


PLENTY = Thrift()


def ladder(device: torch.device) -> list[Thrift]:
    """From the fastest to the leanest; only a GPU has main memory beside its own."""
    rungs = [PLENTY, Thrift(decode_chunk=1)]
    if device.type == "cuda":
        rungs.append(Thrift(decode_chunk=1, offload=True))
    last = rungs[-1]
    return [*rungs, Thrift(decode_chunk=1, offload=last.offload, tiles=True)]


def described(thrift: Thrift) -> str:
    """In words, for people."""
    words = [f"{thrift.decode_chunk} frame{'s' * (thrift.decode_chunk > 1)} decoded at a time"]
    words += ["weights in main memory"] * thrift.offload + ["decoding in tiles"] * thrift.tiles
    return ", ".join(words)


def leaner(thrift: Thrift, device: torch.device) -> Thrift | None:
    """The next rung of the ladder, or None where there is none."""
    rungs = ladder(device)
    if thrift not in rungs:
        return None
    after = rungs[rungs.index(thrift) + 1 :]
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
        """Weights and the larger of the two."""
        return self.weights + max(self.denoising, self.decoding)


def needed(
    *,
    num_weights: int,
    channels: tuple[int, int],
    shape: tuple[int, int, int],
    factor: int,
    itemsize: int,
    thrift: Thrift = PLENTY,
) -> Need:
    """An estimate for one job, good to about a tenth for what is counted.

    channels: of the UNet's and of the VAE's first level; shape: frames of a window, height and
    width in pixels; factor: pixels for one latent; itemsize: bytes of one number of the UNet.
    """
    frames, height, width = shape
    latents = frames * (height // factor) * (width // factor)
    together = min(thrift.decode_chunk, frames)
    return Need(
        weights=num_weights * itemsize,
        denoising=UNET_FEATURES * latents * channels[0] * itemsize,
        decoding=VAE_FEATURES * together * height * width * channels[1] * 4,
    )


def place(
    base: BaseModel,
    motion: MotionModule,
    device: torch.device,
    dtype: torch.dtype,
    thrift: Thrift,
) -> None:
    """Bring a loaded model to where it runs, as the thrift says."""
    _set_tiles(base.vae, thrift.tiles)
    if is_offloaded(base.unet):
        return
    if not thrift.offload:
        base.to(device, dtype)
        motion.to(device, dtype)
        return
    base.to("cpu", dtype)
    motion.to("cpu", dtype)
    offload(base, motion, device)


def offload(base: BaseModel, motion: MotionModule, device: torch.device) -> None:
    """Keep the weights in main memory; each block comes to `device` while it runs.

    The first and last layers of each model stay there, so that its `device` says where it runs.
    """
    for part in _parts(base, motion):
        add_hook_to_module(part, AlignDevicesHook(device, offload=True, place_submodules=True))
    for model in (base.unet, base.vae, *base.text_encoders, motion):
        for parameter in (*model.parameters(), *model.buffers()):
            if not parameter.is_meta:
                parameter.data = parameter.data.to(device)


def _parts(base: BaseModel, motion: MotionModule) -> Iterator[nn.Module]:
    unet, encoder, decoder = base.unet, base.vae.encoder, base.vae.decoder
    for text in base.text_encoders:
        yield from getattr(text, "text_model", text).encoder.layers
    yield from (*unet.down_blocks, unet.mid_block, *unet.up_blocks)
    yield from (*encoder.down_blocks, encoder.mid_block, decoder.mid_block, *decoder.up_blocks)
    yield from (part for part in motion.modules() if isinstance(part, TemporalTransformer))


def _set_tiles(vae: AutoencoderKL, tiles: bool) -> None:
    if tiles:
        vae.enable_tiling()
    else:
        vae.disable_tiling()


def is_offloaded(model: nn.Module) -> bool:
    """Whether weights of it wait elsewhere."""
    return any(parameter.is_meta for parameter in model.parameters())
