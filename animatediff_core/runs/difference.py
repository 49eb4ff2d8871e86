"""The difference between diffusers' arithmetic and a motion module's own, on one UNet call."""

import math
from dataclasses import replace

import torch

from ..checkpoints.base_model import BaseModel
from ..diffusion.noise import draw_noise
from ..diffusion.size_conditions import size_conditions
from ..diffusion.text import embed_prompt
from ..errors import CheckpointError
from ..motion import MotionModule, inflate

_FRAMES = 4
_SIDE = 8
"""Latent pixels: enough for statistics, and quick on a full-size model."""
_TIMESTEP = 500


@torch.no_grad()
def one_step_difference(base: BaseModel, motion: MotionModule) -> float:
    """Relative L2 difference of what the UNet predicts for one noise, ours against diffusers'.

    diffusers normalises motion features over all frames and ResNets over each: 0 where the
    module's own norms are these. Both must be on the CPU in one dtype.
    """
    converted = replace(motion.config, frame_norm="clip", resnet_norm="frame")
    if converted == motion.config:
        return 0.0
    with torch.device("meta"):
        stock = MotionModule(converted)
    stock.load_state_dict(motion.state_dict(), assign=True)  # the very same weights
    own = _predicted(base, motion)
    difference = float((own - _predicted(base, stock.eval())).norm() / own.norm())
    if not math.isfinite(difference):
        raise CheckpointError(
            f"{base.source}: with these adapters the model predicts values that are no numbers; "
            "lower their scales, or download the file that is damaged"
        )
    return difference


def _predicted(base: BaseModel, motion: MotionModule) -> torch.Tensor:
    """b c f h w, for fixed noise and an empty prompt."""
    frames = min(_FRAMES, motion.config.max_frames)
    text = embed_prompt(base, {0: ""}, frames)
    noise = draw_noise(0, (1, base.unet.config.in_channels, frames, _SIDE, _SIDE))
    noise = noise.to(base.unet.dtype)
    pixels = _SIDE * base.vae_scale_factor
    conditions = size_conditions(text.pooled, pixels, pixels)
    if motion.conv_in is not None:
        further = motion.conv_in.in_channels - noise.shape[1]
        conditions = replace(
            conditions, image_latents=noise.new_zeros(1, further, *noise.shape[2:])
        )
    animated = inflate(base.unet, motion)
    try:
        predicted: torch.Tensor = animated(noise, _TIMESTEP, text.tokens, conditions)
        return predicted.float()
    finally:
        animated.deflate()
