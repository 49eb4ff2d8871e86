"""What each stage trains: a module whose forward is the loss, and its parameters by official name.

Legend: b batch, f frames, c channels, h w latent size, n tokens, d features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models import ControlNetModel, UNet2DConditionModel
from diffusers.schedulers import DDPMScheduler
from torch import Tensor, nn

from ...diffusion.loss import image_loss, motion_loss
from ...motion import AnimatedUNet, Conditions
from ..clips import Condition
from .lora_layers import LoraLayers
from .placeholder_token import LearnedWord


@dataclass(frozen=True)
class Trainee:
    """One stage's model: called as loss(latents b c f h w, noise, timesteps, text, conditions)."""

    loss: nn.Module
    parameters: dict[str, nn.Parameter]
    """What is trained, by the names that the written file uses."""
    scheduler: DDPMScheduler


Embed = Callable[[Sequence[str]], tuple[Tensor, Conditions | None]]


@dataclass(frozen=True)
class StageModel:
    """One stage's model: what is trained, and how it is written."""

    trainee: Trainee
    embed: Embed
    """Captions -> b n d, and what SDXL reads besides."""
    write: Callable[[dict[str, Tensor], Path], Path]
    """Writes the trained part only, as safetensors, into a folder."""
    finish: Callable[[dict[str, Tensor], Path], Path]
    """The last file, and what else the stage leaves."""
    animated: AnimatedUNet | None = None
    """The model that validation samples, where it is not the image model."""
    condition: Condition | None = None
    """What the loss reads of each sample besides."""
    leader: ControlNetModel | None = None
    """The ControlNet that learns beside the UNet, where the stage has one."""


class ImageLoss(nn.Module):
    """The stages on pictures: the plain UNet on the first frame of each sample."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        scheduler: DDPMScheduler,
        learned: nn.Module | None = None,
        prior_weight: float | None = None,
    ) -> None:
        super().__init__()
        self.unet = unet
        self.scheduler = scheduler
        self.learned = learned  # what hooks on the frozen models use moves with them
        self.prior_weight = prior_weight

    def forward(
        self,
        latents: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        text: Tensor,
        conditions: Conditions | None = None,
    ) -> Tensor:
        """Every second sample is a prior picture where `prior_weight` is given."""
        weights = None
        if self.prior_weight is not None:
            pair = torch.tensor([1.0, self.prior_weight], device=latents.device)
            weights = pair.repeat(len(latents) // 2)
        pictures, noises = latents[:, :, 0], noise[:, :, 0]
        return image_loss(
            self.unet, self.scheduler, pictures, noises, timesteps, text, weights, conditions
        )


class MotionLoss(nn.Module):
    """Stage `motion`: the animated UNet, only its motion module learns."""

    def __init__(self, animated: AnimatedUNet, scheduler: DDPMScheduler) -> None:
        super().__init__()
        self.animated = animated
        self.scheduler = scheduler

    def forward(
        self,
        latents: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        text: Tensor,
        conditions: Conditions | None = None,
    ) -> Tensor:
        return motion_loss(
            self.animated, self.scheduler, latents, noise, timesteps, text, conditions
        )


def image_trainee(
    unet: UNet2DConditionModel, scheduler: DDPMScheduler, prior_weight: float | None = None
) -> Trainee:
    """All weights of the image UNet."""
    unet.requires_grad_(True).train()
    loss = ImageLoss(unet, scheduler, prior_weight=prior_weight)
    return Trainee(loss, dict(unet.named_parameters()), scheduler)


def motion_trainee(animated: AnimatedUNet, scheduler: DDPMScheduler) -> Trainee:
    """The motion module over a frozen UNet."""
    animated.unet.requires_grad_(False).eval()
    animated.motion.requires_grad_(True).train()
    parameters = dict(animated.motion.named_parameters())
    return Trainee(MotionLoss(animated, scheduler), parameters, scheduler)


def lora_trainee(
    unet: UNet2DConditionModel, layers: LoraLayers, scheduler: DDPMScheduler
) -> Trainee:
    """Low-rank layers beside a frozen UNet."""
    unet.requires_grad_(False).eval()
    loss = ImageLoss(unet, scheduler, layers)
    return Trainee(loss, layers.by_key(), scheduler)


def word_trainee(
    unet: UNet2DConditionModel, word: str, learned: LearnedWord, scheduler: DDPMScheduler
) -> Trainee:
    """The vectors of one word, everything else frozen."""
    unet.requires_grad_(False).eval()
    loss = ImageLoss(unet, scheduler, learned)
    return Trainee(loss, {word: learned.vectors}, scheduler)


def timestep_draw(
    sampling: str, mean: float, std: float
) -> Callable[[int, torch.Generator], Tensor]:
    """A function from (count, generator) to timesteps in 0..999."""

    def draw(count: int, generator: torch.Generator) -> Tensor:
        if sampling == "uniform":
            return torch.randint(0, 1000, (count,), generator=generator)
        normal = torch.randn(count, generator=generator) * std + mean
        return (normal.sigmoid() * 1000).long().clamp(0, 999)

    return draw
