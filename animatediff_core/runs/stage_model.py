"""What a training run trains: the stage's model, where it starts from, and how it is written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers.schedulers import DDPMScheduler
from torch import Tensor

from ..checkpoints.base import BaseModel, resolve_file
from ..checkpoints.export import MOTION_FILE, write_base_folder
from ..checkpoints.files import read_tensors, write_tensors
from ..checkpoints.motion_modules import load_motion_module, save_motion_module
from ..diffusion.schedules import training_scheduler
from ..diffusion.text import encode
from ..errors import CheckpointError, TrainingError
from ..motion import AnimatedUNet, Betas, MotionModule, for_unet, inflate
from ..training.config import TrainConfig
from ..training.lora_layers import LoraLayers
from ..training.stages import Trainee, image_trainee, lora_trainee, motion_trainee

UNET_FILE = "unet.safetensors"
LORA_FILE = "lora.safetensors"


@dataclass(frozen=True)
class StageModel:
    """One stage's model: what is trained, and how it is written."""

    trainee: Trainee
    embed: Callable[[Sequence[str]], Tensor]
    """Captions -> b n d."""
    write: Callable[[dict[str, Tensor], Path], Path]
    """Writes the trained part only, as safetensors, into a folder."""
    finish: Callable[[dict[str, Tensor], Path], Path]
    """The last file, and what else the stage leaves."""
    animated: AnimatedUNet | None = None
    """The model that validation samples, where it is not the image model."""


def open_stage(config: TrainConfig, base: BaseModel, *, offline: bool) -> StageModel:
    """The model of the configuration's stage, over a loaded base model."""
    if config.unet is not None:
        _replace_unet(base, Path(config.unet))
    if config.stage == "motion":
        return _motion_stage(base, _motion(config, base, offline))
    kind = base.scheduler_config
    own = (kind["beta_start"], kind["beta_end"], kind["beta_schedule"])
    scheduler = training_scheduler(config.betas or own, prediction_type=base.prediction_type)
    return (
        _image_stage(base, scheduler)
        if config.stage == "image"
        else _lora_stage(config, base, scheduler)
    )


def _motion_stage(base: BaseModel, motion: MotionModule) -> StageModel:
    animated = inflate(base.unet, motion)
    scheduler = training_scheduler(motion.config.betas, prediction_type=base.prediction_type)

    def write(weights: dict[str, Tensor], output: Path) -> Path:
        with torch.device("meta"):
            trained = MotionModule(motion.config)
        trained.load_state_dict(weights, assign=True)
        save_motion_module(trained, output / MOTION_FILE)
        return output / MOTION_FILE

    trainee = motion_trainee(animated, scheduler)
    return StageModel(trainee, _embedder(base), write, write, animated)


def _image_stage(base: BaseModel, scheduler: DDPMScheduler) -> StageModel:
    def write(weights: dict[str, Tensor], output: Path) -> Path:
        write_tensors(output / UNET_FILE, weights, {"format": "pt"})
        return output / UNET_FILE

    def finish(weights: dict[str, Tensor], output: Path) -> Path:
        """Also the whole model, for `--base`."""
        path = write(weights, output)
        base.unet.load_state_dict(weights)
        write_base_folder(base, output / "base")
        return path

    return StageModel(image_trainee(base.unet, scheduler), _embedder(base), write, finish)


def _lora_stage(config: TrainConfig, base: BaseModel, scheduler: DDPMScheduler) -> StageModel:
    generator = torch.Generator().manual_seed(config.seed)
    layers = LoraLayers(base.unet, config.lora_rank or 16, generator)

    def write(weights: dict[str, Tensor], output: Path) -> Path:
        write_tensors(output / LORA_FILE, weights, {"format": "pt"})
        return output / LORA_FILE

    trainee = lora_trainee(base.unet, layers, scheduler)
    return StageModel(trainee, _embedder(base), write, write)


def _embedder(base: BaseModel) -> Callable[[Sequence[str]], Tensor]:
    return lambda captions: encode(base, captions)[0]


def _motion(config: TrainConfig, base: BaseModel, offline: bool) -> MotionModule:
    """The module to start from, or a fresh one with the run's own seed."""
    if config.motion is not None:
        path = Path(config.motion) if Path(config.motion).exists() else None
        path = path or resolve_file(config.motion, offline=offline)
        motion = load_motion_module(path, version=config.motion_version)
    else:
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
            motion = MotionModule(motion_config)
    if config.betas is not None:
        motion.config = replace(motion.config, betas=_betas(config.betas))
    if config.num_frames > motion.config.max_frames:
        raise TrainingError(
            f"sample_n_frames {config.num_frames} is more than the module's "
            f"{motion.config.max_frames} positions; lower it, or set max_frames"
        )
    return motion


def _betas(given: Betas) -> Betas:
    start, end, schedule = given
    return float(start), float(end), str(schedule)


def _replace_unet(base: BaseModel, path: Path) -> None:
    """Put the image stage's weights into the base's UNet; both key lists must agree."""
    tensors = read_tensors(path).tensors
    own = base.unet.state_dict().keys()
    missing, unknown = sorted(own - tensors.keys()), sorted(tensors.keys() - own)
    if missing or unknown:
        raise CheckpointError(
            f"{path}: is no UNet of this base model ({len(missing)} tensors missing, "
            f"{len(unknown)} unknown); name the unet.safetensors that the image stage wrote"
        )
    base.unet.load_state_dict(tensors)
