"""An estimate of a planned job's memory."""

from functools import cache

import torch

from ..motion import MotionConfig, MotionModule
from ..speed.memory import PLENTY, Need, Thrift, needed
from .jobs import Planned
from .model_size import ModelSize, model_size
from .models import FoundModel


def need_of(planned: Planned, dtype: torch.dtype, thrift: Thrift = PLENTY) -> Need:
    """Estimate without loading anything; the models of conditions are not counted."""
    job, found = planned.job, planned.found
    size = _size(found)
    scale = 1.0 if job.upscale is None else job.upscale.scale
    frames = job.frames if job.window is None else min(job.window.length, job.frames)
    return needed(
        num_weights=size.num_weights + _num_motion_weights(found.motion_config),
        channels=(found.motion_config.block_out_channels[0], size.vae_channels),
        shape=(frames, round(job.height * scale), round(job.width * scale)),
        factor=found.vae_scale_factor,
        itemsize=dtype.itemsize,
        thrift=thrift,
    )


@cache
def _size(found: FoundModel) -> ModelSize:
    return model_size(found.base_path, found.spec.base, found.spec.variant)


@cache
def _num_motion_weights(config: MotionConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in MotionModule(config).parameters())
