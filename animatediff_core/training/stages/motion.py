"""Stage `motion` (arXiv 2307.04725): the motion module on video clips, over a frozen UNet."""

from dataclasses import replace
from pathlib import Path

import torch
from diffusers.schedulers import DDPMScheduler
from torch import Tensor, nn

from ...checkpoints.base_model import BaseModel
from ...checkpoints.motion_files import MOTION_FILE
from ...checkpoints.motion_module import load_motion_module, save_motion_module
from ...diffusion.loss import motion_loss
from ...diffusion.schedules import training_scheduler
from ...errors import TrainingError
from ...motion import AnimatedUNet, Conditions, MotionModule, for_unet, inflate
from ...weights.places import local_path
from ..config import TrainConfig
from ..stage import Stage, Weights, frozen_text


def motion_stage(config: TrainConfig, base: BaseModel, *, offline: bool) -> Stage:
    """Train a fresh motion module, or the one of the configuration."""
    animated = open_motion(config, base, offline=offline)
    motion = animated.motion

    def write(weights: Weights, path: Path) -> None:
        with torch.device("meta"):
            trained = MotionModule(motion.config)
        trained.load_state_dict(weights, assign=True)
        save_motion_module(trained, path)

    return Stage(
        loss=MotionLoss(animated, scheduler_of(animated, base)),
        parameters=motion_parameters(animated),
        embed=frozen_text(config, base),
        file_name=MOTION_FILE,
        write=write,
        animated=animated,
    )


def open_motion(config: TrainConfig, base: BaseModel, *, offline: bool) -> AnimatedUNet:
    """The base model with a fresh motion module, or with the one of the configuration."""
    motion = _loaded(config, offline) if config.motion is not None else _fresh(config, base)
    if config.betas is not None:
        motion.config = replace(motion.config, betas=config.betas)
    if config.num_frames > motion.config.max_frames:
        raise TrainingError(
            f"sample_n_frames {config.num_frames} is more than the module's "
            f"{motion.config.max_frames} positions; lower it, or set max_frames"
        )
    return inflate(base.unet, motion)


def scheduler_of(animated: AnimatedUNet, base: BaseModel) -> DDPMScheduler:
    """The noise schedule of the stages on clips: the motion module's betas."""
    betas = animated.motion.config.betas
    return training_scheduler(betas, prediction_type=base.prediction_type, zero_snr=base.zero_snr)


class MotionLoss(nn.Module):
    """Loss of the animated UNet on whole clips."""

    def __init__(
        self, animated: AnimatedUNet, scheduler: DDPMScheduler, *, hooked: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.animated, self.scheduler = animated, scheduler
        self.hooked = hooked  # modules that act through hooks move to the device with the loss

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


def motion_parameters(animated: AnimatedUNet) -> dict[str, nn.Parameter]:
    """Freeze the UNet; returns the weights of the motion module, ready to train."""
    animated.unet.requires_grad_(False).eval()
    animated.motion.requires_grad_(True).train()
    return dict(animated.motion.named_parameters())


def _loaded(config: TrainConfig, offline: bool) -> MotionModule:
    source = str(config.motion)
    path = Path(source) if Path(source).exists() else local_path(source, offline=offline)
    motion = load_motion_module(path, version=config.motion_version)
    if config.max_frames not in (None, motion.config.max_frames):
        raise TrainingError(
            f"max_frames {config.max_frames}: {source} has {motion.config.max_frames} positions; "
            "leave max_frames out if a run starts from a module"
        )
    return motion


def _fresh(config: TrainConfig, base: BaseModel) -> MotionModule:
    """A new module, initialised with the run's seed."""
    unet = base.unet.config
    motion_config = for_unet(
        config.motion_version or "v3",
        unet.block_out_channels,
        layers_per_block=unet.layers_per_block,
        norm_num_groups=unet.norm_num_groups,
    )
    if config.max_frames is not None:
        motion_config = replace(motion_config, max_frames=config.max_frames)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return MotionModule(motion_config)
