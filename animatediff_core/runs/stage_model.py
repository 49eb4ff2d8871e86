"""What a training run trains: the stage's model, where it starts from, and how it is written."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints.base import BaseModel, resolve_file
from ..checkpoints.export import MOTION_FILE, write_base_folder
from ..checkpoints.files import read_tensors, write_tensors
from ..checkpoints.motion_modules import load_motion_module, save_motion_module
from ..diffusion.schedules import training_scheduler
from ..diffusion.text import encode
from ..errors import CheckpointError, TrainingError
from ..motion import AnimatedUNet, Betas, MotionConfig, MotionModule, for_unet, inflate
from ..training.config import TrainConfig
from ..training.stages import Trainee, image_trainee, motion_trainee

UNET_FILE = "unet.safetensors"


class StageModel:
    """The stage's model: what is trained, and how it is written."""

    def __init__(self, config: TrainConfig, base: BaseModel, offline: bool) -> None:
        self.base = base
        self.animated: AnimatedUNet | None = None
        self.motion_config: MotionConfig | None = None
        if config.unet is not None:
            _replace_unet(base, Path(config.unet))
        if config.stage == "image":
            kind = base.scheduler_config
            own = (kind["beta_start"], kind["beta_end"], kind["beta_schedule"])
            scheduler = training_scheduler(
                config.betas or own, prediction_type=base.prediction_type
            )
            self.trainee: Trainee = image_trainee(base.unet, scheduler)
            return
        motion = _motion(config, base, offline)
        self.motion_config = motion.config
        self.animated = inflate(base.unet, motion)
        scheduler = training_scheduler(motion.config.betas, prediction_type=base.prediction_type)
        self.trainee = motion_trainee(self.animated, scheduler)

    def embed(self, captions: Sequence[str]) -> Tensor:
        """Captions -> b n d."""
        return encode(self.base, captions)[0]

    def write(self, weights: dict[str, Tensor], output: Path) -> Path:
        """The trained part only, as safetensors."""
        if self.motion_config is None:
            write_tensors(output / UNET_FILE, weights, {"format": "pt"})
            return output / UNET_FILE
        with torch.device("meta"):
            motion = MotionModule(self.motion_config)
        motion.load_state_dict(weights, assign=True)
        save_motion_module(motion, output / MOTION_FILE)
        return output / MOTION_FILE

    def finish(self, weights: dict[str, Tensor], output: Path) -> Path:
        """The last file; the image stage also writes the whole model for `--base`."""
        path = self.write(weights, output)
        if self.motion_config is None:
            self.base.unet.load_state_dict(weights)
            write_base_folder(self.base, output / "base")
        return path


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
