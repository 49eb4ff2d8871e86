"""What the model in training makes of a few prompts: one GIF, or one PNG in stages on pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..checkpoints.base_model import BaseModel
from ..diffusion.decoding import decode
from ..diffusion.denoise import denoise
from ..diffusion.image_unet import ImageUNet
from ..diffusion.noise import draw_noise
from ..diffusion.schedules import make_scheduler
from ..diffusion.size_conditions import size_conditions
from ..diffusion.text import embed_prompt
from ..media import Encoding, contact_sheet, write_clip, write_picture
from ..motion import AnimatedUNet, MotionConfig
from .config import TrainConfig


def validate(
    config: TrainConfig, base: BaseModel, animated: AnimatedUNet | None, path: Path
) -> Path:
    """Sample every validation prompt, seeds counting up from 0; returns the file written."""
    given = config.validation
    settings = (given.steps, given.guidance_scale)
    clips = []
    for seed, prompt in enumerate(given.prompts):
        if animated is None:
            clips.append(sample_stills(config, base, prompt, [seed], settings))
            continue
        noise = draw_noise(seed, _shape(config, base, config.num_frames))
        clips.append(_sample(base, animated, animated.motion.config, noise, prompt, settings))
    if animated is None:
        picture = path.with_suffix(".png")
        write_picture(contact_sheet(clips, columns=1), picture)
        return picture
    clip = path.with_suffix(".gif")
    write_clip(np.concatenate(clips, axis=2), clip, Encoding(format="gif", fps=8))
    return clip


def sample_stills(
    config: TrainConfig,
    base: BaseModel,
    prompt: str,
    seeds: Sequence[int],
    settings: tuple[int, float],
) -> np.ndarray:
    """Pictures of the image model, one for each seed: f h w 3. `settings`: steps and guidance."""
    noise = torch.cat([draw_noise(seed, _shape(config, base, 1)) for seed in seeds], dim=2)
    schedule = MotionConfig(betas=config.betas or base.betas)
    return _sample(base, ImageUNet(base.unet), schedule, noise, prompt, settings)


def _shape(config: TrainConfig, base: BaseModel, frames: int) -> tuple[int, int, int, int, int]:
    height, width = (size // base.vae_scale_factor for size in config.data.sample_size)
    return 1, base.unet.config.in_channels, frames, height, width


def _sample(
    base: BaseModel,
    model: AnimatedUNet | ImageUNet,
    schedule: MotionConfig,
    noise: Tensor,
    prompt: str,
    settings: tuple[int, float],
) -> np.ndarray:
    """noise: 1 c f h w -> f h w 3 uint8. The UNet is left in the mode that it came in."""
    training = base.unet.training
    base.unet.eval()
    with torch.no_grad():
        text = embed_prompt(base, {0: prompt}, noise.shape[2])
        negative = embed_prompt(base, {0: ""}, noise.shape[2])
        height, width = (size * base.vae_scale_factor for size in noise.shape[3:])
        latents = denoise(
            model,
            make_scheduler(
                "ddim", schedule, prediction_type=base.prediction_type, zero_snr=base.zero_snr
            ),
            noise.to(base.unet.device),
            text.tokens,
            negative.tokens,
            steps=settings[0],
            guidance_scale=settings[1],
            conditions=size_conditions(text.pooled, height, width),
            negative_conditions=size_conditions(negative.pooled, height, width),
        )
    base.unet.train(training)
    return decode(base.vae, latents)
