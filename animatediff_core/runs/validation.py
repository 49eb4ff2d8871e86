"""What the model in training makes of a few prompts: one GIF, or one PNG in the image stage."""

from pathlib import Path

import numpy as np
import torch

from ..checkpoints.base import BaseModel
from ..diffusion.denoise import decode, denoise, draw_noise
from ..diffusion.schedules import make_scheduler
from ..diffusion.still import StillUNet
from ..diffusion.text import embed_prompt
from ..media import contact_sheet, write_clip, write_picture
from ..motion import AnimatedUNet, MotionConfig
from ..training.config import TrainConfig


def validate(
    config: TrainConfig, base: BaseModel, animated: AnimatedUNet | None, path: Path
) -> Path:
    """Sample every validation prompt, seeds counting up from 0; returns the file written."""
    clips = [
        _sample(config, base, animated, prompt, seed)
        for seed, prompt in enumerate(config.validation.prompts)
    ]
    if animated is None:
        picture = path.with_suffix(".png")
        write_picture(contact_sheet(clips, columns=1), picture)
        return picture
    clip = path.with_suffix(".gif")
    write_clip(np.concatenate(clips, axis=2), clip, format="gif", fps=8)
    return clip


def _sample(
    config: TrainConfig, base: BaseModel, animated: AnimatedUNet | None, prompt: str, seed: int
) -> np.ndarray:
    """One clip: f h w 3 uint8."""
    model = animated or StillUNet(base.unet)
    training = base.unet.training
    base.unet.eval()
    height, width = (size // base.factor for size in config.data.sample_size)
    frames = config.num_frames
    noise = draw_noise(seed, (1, base.unet.config.in_channels, frames, height, width))
    with torch.no_grad():
        text = embed_prompt(base, {0: prompt}, frames).tokens
        negative = embed_prompt(base, {0: ""}, frames).tokens
        latents = denoise(
            model,
            make_scheduler(
                "ddim", _schedule(config, base, animated), prediction_type=base.prediction_type
            ),
            noise.to(base.unet.device),
            text,
            negative,
            steps=config.validation.steps,
            guidance_scale=config.validation.guidance_scale,
        )
    base.unet.train(training)
    return decode(base.vae, latents)


def _schedule(config: TrainConfig, base: BaseModel, animated: AnimatedUNet | None) -> MotionConfig:
    """The betas to sample with, in the form that `make_scheduler` takes."""
    if animated is not None:
        return animated.motion.config
    kind = base.scheduler_config
    own = (kind["beta_start"], kind["beta_end"], kind["beta_schedule"])
    return MotionConfig(betas=config.betas or own)
