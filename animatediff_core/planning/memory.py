"""An estimate of a planned job's memory."""

import torch
from torch import nn

from ..speed.memory import PLENTY, Need, Thrift, needed
from .jobs import Planned


def need_of(planned: Planned, dtype: torch.dtype, thrift: Thrift = PLENTY) -> Need:
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
        thrift=thrift,
    )


def _size(*models: nn.Module) -> int:
    return sum(parameter.numel() for model in models for parameter in model.parameters())
