"""Samples of the model in training: one GIF of clips, or one PNG of images."""

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
from ..jobs import Encoding
from ..media.clip import write_clip
from ..media.image import contact_sheet, write_image
from ..motion import AnimatedUNet, MotionConfig
from .config import TrainConfig


def validate(
    config: TrainConfig, base: BaseModel, animated: AnimatedUNet | None, path: Path
) -> Path:
    """Sample every validation prompt, seeds counting up from 0; returns the written file."""
    settings = (config.validation.steps, config.validation.guidance_scale)
    prompts = config.validation.prompts
    if animated is None:
        images = [
            sample_images(config, base, p, [seed], settings) for seed, p in enumerate(prompts)
        ]
        path = path.with_suffix(".png")
        write_image(contact_sheet(images, columns=1), path)
        return path
    clips = []
    for seed, prompt in enumerate(prompts):
        noise = draw_noise(seed, _shape(config, base, config.num_frames))
        clips.append(_sample(base, animated, animated.motion.config, noise, prompt, settings))
    path = path.with_suffix(".gif")
    write_clip(np.concatenate(clips, axis=2), path, Encoding(format="gif", fps=8))
    return path


def sample_images(
    config: TrainConfig,
    base: BaseModel,
    prompt: str,
    seeds: Sequence[int],
    settings: tuple[int, float],
) -> np.ndarray:
    """Images of the base model, one for each seed: f h w 3. `settings`: steps and guidance."""
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
    """noise: 1 c f h w -> f h w 3 uint8. The UNet's training mode is restored."""
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
