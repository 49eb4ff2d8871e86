"""Stage `motion-lora` (paper section 4.3): low-rank layers in the attentions of a motion module.

The UNet and the module stay frozen. The file has the official keys, which every program reads.
"""

import re
from pathlib import Path

import torch
from torch import nn

from ...checkpoints.base_model import BaseModel
from ...motion import MotionModule
from ...weights.files import write_tensors
from ..config import TrainConfig
from ..stage import Stage, Weights, frozen_text
from .lora import LoraLayers
from .motion import MotionLoss, open_motion, scheduler_of

MOTION_LORA_FILE = "motion_lora.safetensors"
_KEYS = ("_lora.down.weight", "_lora.up.weight")
_ATTENTION = re.compile(r"(attention_blocks\.\d+)\.(to_[qkv]|to_out)(\.0)?$")
_FEED_FORWARD = re.compile(r"\.ff\.net\.(0\.proj|2)$")


def motion_lora_stage(config: TrainConfig, base: BaseModel, *, offline: bool) -> Stage:
    """Train low-rank layers over the configuration's motion module."""
    animated = open_motion(config, base, offline=offline)
    animated.unet.requires_grad_(False).eval()
    animated.motion.requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(config.seed)
    layers = _layers(animated.motion, bool(config.lora_feed_forward))
    lora = LoraLayers(layers, config.lora_rank or 64, generator, 0, _KEYS)
    return Stage(
        loss=MotionLoss(animated, scheduler_of(animated, base), hooked=lora),
        parameters=lora.by_key(),
        embed=frozen_text(config, base),
        file_name=MOTION_LORA_FILE,
        write=_write,
        animated=animated,
    )


def _layers(motion: MotionModule, feed_forward: bool) -> dict[str, nn.Module]:
    """The linear layers of the temporal attentions, by their names in official files."""
    layers: dict[str, nn.Module] = {}
    for name, layer in motion.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        if _ATTENTION.search(name):
            layers[_ATTENTION.sub(r"\1.processor.\2", name)] = layer
        elif feed_forward and _FEED_FORWARD.search(name):
            layers[name] = layer
    return layers


def _write(weights: Weights, path: Path) -> None:
    write_tensors(path, weights, {"format": "pt"})
