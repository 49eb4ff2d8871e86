"""Training stages of models that lead a clip: what they start from, and the files they leave."""

from pathlib import Path

import torch
from diffusers.schedulers import DDPMScheduler
from torch import Tensor

from ...adapters.controlnet import load_controlnet
from ...adapters.ip_adapter import IPAdapterWeights, attach_ip_adapters, load_image_encoder
from ...checkpoints.base_model import BaseModel
from ...weights.files import write_tensors
from ...weights.places import local_path
from ..clips import Condition
from ..config import TrainConfig
from .control import (
    clip_condition,
    controlnet_trainee,
    edge_condition,
    ip_adapter_trainee,
    new_controlnet,
    new_ip_adapter,
    paired_condition,
)
from .stage import Embed, StageModel

CONTROLNET_FILE = "controlnet.safetensors"
IP_ADAPTER_FILE = "ip_adapter.safetensors"


def controlnet_stage(
    config: TrainConfig, base: BaseModel, scheduler: DDPMScheduler, embed: Embed, *, offline: bool
) -> StageModel:
    """A ControlNet over the frozen base; it is written as one file in diffusers' names."""
    if config.controlnet is not None:
        control = load_controlnet(
            local_path(config.controlnet, "control", offline=offline), base.unet
        )
    else:
        control = new_controlnet(
            base.unet, base.vae_scale_factor.bit_length() - 1, config.seed, small=bool(config.small)
        )

    def write(weights: dict[str, Tensor], output: Path) -> Path:
        write_tensors(output / CONTROLNET_FILE, weights, {"format": "pt"})
        return output / CONTROLNET_FILE

    trainee = controlnet_trainee(base.unet, control, scheduler)
    condition = _condition(config)
    return StageModel(trainee, embed, write, write, condition=condition, leader=control)


def _condition(config: TrainConfig) -> Condition:
    if config.canny is not None:
        return edge_condition(config.canny)
    assert config.condition_folder is not None
    return paired_condition(Path(config.condition_folder), config.data.sample_size)


def ip_adapter_stage(
    config: TrainConfig, base: BaseModel, scheduler: DDPMScheduler, embed: Embed, *, offline: bool
) -> StageModel:
    """A plain IP-Adapter over the frozen base; it is written in the official keys."""
    place = local_path(str(config.image_encoder), "image encoder", offline=offline)
    encoder = load_image_encoder(place)
    generator = torch.Generator().manual_seed(config.seed)
    parts = new_ip_adapter(base.unet, encoder.config.projection_dim, generator)
    attach_ip_adapters(base.unet, [(IPAdapterWeights(place, "plain", parts), 1.0)])

    def write(weights: dict[str, Tensor], output: Path) -> Path:
        write_tensors(output / IP_ADAPTER_FILE, weights, {"format": "pt"})
        return output / IP_ADAPTER_FILE

    trainee = ip_adapter_trainee(base.unet, encoder, scheduler)
    condition = clip_condition(encoder.config.image_size)
    return StageModel(trainee, embed, write, write, condition=condition)
