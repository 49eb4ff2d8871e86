"""The record of a training stage, and the loss on single frames.

Legend: b batch, f frames, c channels, h w latent size, n tokens, d features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models import ControlNetModel, UNet2DConditionModel
from diffusers.schedulers import DDPMScheduler
from torch import Tensor, nn

from ..checkpoints.base_model import BaseModel
from ..diffusion.encoders import encode
from ..diffusion.loss import image_loss
from ..diffusion.schedules import training_scheduler
from ..diffusion.size_conditions import size_conditions
from ..motion import AnimatedUNet, Conditions
from ..weights.files import write_tensors
from .clips import ReadCondition
from .config import TrainConfig

Weights = dict[str, Tensor]


def write_weights(weights: Weights, path: Path) -> None:
    """Write a safetensors file without a configuration."""
    write_tensors(path, weights, {"format": "pt"})


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage over a loaded base model: what is trained, and how it is written."""

    loss: nn.Module
    """Called with latents (b c f h w), noise, timesteps, text and Conditions, then the samples'
    conditions where the stage reads them; returns a scalar."""
    parameters: dict[str, nn.Parameter]
    """Trained weights by the names in the file."""
    embed: Callable[[Sequence[str]], tuple[Tensor, Conditions | None]]
    """Captions -> text b n d, and SDXL's pooled text and sizes."""
    file_name: str
    write: Callable[[Weights, Path], None] = write_weights
    """Writes the trained weights to a file."""
    export: Callable[[Weights, Path], None] | None = None
    """Writes a whole model with the final weights into a folder."""
    animated: AnimatedUNet | None = None
    """Model that validation samples; None is the image model."""
    condition: ReadCondition | None = None
    controlnet: ControlNetModel | None = None
    """Trained beside the UNet."""


class ImageLoss(nn.Module):
    """Loss of the UNet on the first frame of each sample."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        scheduler: DDPMScheduler,
        *,
        hooked: nn.Module | None = None,
        prior_weight: float | None = None,
    ) -> None:
        super().__init__()
        self.unet, self.scheduler, self.prior_weight = unet, scheduler, prior_weight
        self.hooked = hooked  # modules that act through hooks move to the device with the loss

    def forward(
        self,
        latents: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        text: Tensor,
        conditions: Conditions | None = None,
        images: Tensor | None = None,
    ) -> Tensor:
        """latents, noise: b c f h w; images: b 3 H W, if the stage reads them.

        Odd samples are prior images if `prior_weight` is set.
        """
        weights = None
        if self.prior_weight is not None:
            pair = torch.tensor([1.0, self.prior_weight], device=latents.device)
            weights = pair.repeat(len(latents) // 2)
        first, first_noise = latents[:, :, 0], noise[:, :, 0]
        if images is not None:
            noisy = self.scheduler.add_noise(first, first_noise, timesteps)
            conditions = self.condition(images, noisy, timesteps, text, conditions or Conditions())
        return image_loss(
            self.unet, self.scheduler, first, first_noise, timesteps, text, weights, conditions
        )

    def condition(
        self,
        images: Tensor,
        noisy: Tensor,
        timesteps: Tensor,
        text: Tensor,
        conditions: Conditions,
    ) -> Conditions:
        """Conditions with what a stage makes of its images, b 3 H W; noisy: b c h w."""
        raise NotImplementedError


def image_scheduler(config: TrainConfig, base: BaseModel) -> DDPMScheduler:
    """The noise schedule of the stages on single frames."""
    return training_scheduler(
        config.betas or base.betas, prediction_type=base.prediction_type, zero_snr=base.zero_snr
    )


def frozen_text(
    config: TrainConfig, base: BaseModel
) -> Callable[[Sequence[str]], tuple[Tensor, Conditions | None]]:
    """An `embed` with frozen text encoders."""

    @torch.no_grad()
    def embed(captions: Sequence[str]) -> tuple[Tensor, Conditions | None]:
        text, pooled = encode(base, captions)
        return text, size_conditions(pooled, *config.data.sample_size)

    return embed
