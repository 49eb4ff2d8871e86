"""Where a loaded model's weights lie: on the device, or in main memory until they are needed."""

from collections.abc import Iterator

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from diffusers.models import AutoencoderKL
from torch import nn

from ..checkpoints.base_model import BaseModel
from ..motion import MotionModule
from ..motion.module import TemporalTransformer
from ..planning.memory import MemorySettings


def place(
    base: BaseModel,
    motion: MotionModule,
    device: torch.device,
    dtype: torch.dtype,
    settings: MemorySettings,
) -> None:
    """Bring a loaded model to where it runs, as the settings say."""
    _set_tiles(base.vae, settings.tiles)
    if is_offloaded(base.unet):
        return
    if not settings.offload:
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
