"""Stage `lora` (arXiv 2106.09685): low-rank layers beside a frozen UNet, by hooks: W x + B A x.

A starts random, B at zero, so the first step is the base model. With a rank for convolutions too
(LoCon, LyCORIS), A is a convolution of the layer's own kernel and B one of 1 x 1. Written in
kohya's keys with alpha equal to the rank, which every program reads as scale 1.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from diffusers.models import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from ...checkpoints.base_model import BaseModel
from ...checkpoints.families import family_of_unet
from ...checkpoints.sd_names import original_layers
from ...weights.files import write_tensors
from ..config import TrainConfig
from ..stage import ImageLoss, Stage, Weights, frozen_text, image_scheduler

LORA_FILE = "lora.safetensors"
_ATTENTION = re.compile(r"attn[12]\.(to_[qkv]|to_out\.0)$")
_VERSIONS = {"SD1.5": "sd_v1", "SD2": "sd_v2", "SDXL": "sdxl_base_v1-0"}
"""kohya's words for the families."""
KOHYA = (".lora_down.weight", ".lora_up.weight")
_CONVOLUTION = re.compile(r"resnets\.\d+\.(conv1|conv2|conv_shortcut)$")


def lora_stage(config: TrainConfig, base: BaseModel) -> Stage:
    """Train low-rank layers on single frames."""
    base.unet.requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(config.seed)
    rank, conv_rank = config.lora_rank or 16, config.lora_conv_rank or 0
    layers = LoraLayers(kohya_layers(base.unet, conv_rank > 0), rank, generator, conv_rank, KOHYA)
    metadata = _metadata(base, rank, conv_rank)
    return Stage(
        loss=ImageLoss(base.unet, image_scheduler(config, base), hooked=layers),
        parameters=layers.by_key(),
        embed=frozen_text(config, base),
        file_name=LORA_FILE,
        write=lambda weights, path: _write(weights, path, metadata),
    )


class LoraLayers(nn.Module):
    """A pair of matrices for each layer, by its name in the file.

    `conv_rank` is the rank for convolutions; `keys` are the keys of down and up after a name.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        rank: int,
        generator: torch.Generator,
        conv_rank: int,
        keys: tuple[str, str],
    ) -> None:
        super().__init__()
        self.names, self.keys = list(layers), keys
        self.down = nn.ParameterList()
        self.up = nn.ParameterList()
        self._handles = []
        down: tuple[int, ...]
        up: tuple[int, ...]
        for number, layer in enumerate(layers.values()):
            if isinstance(layer, nn.Linear):
                down, up = (rank, layer.in_features), (layer.out_features, rank)
            else:
                assert isinstance(layer, nn.Conv2d)
                down = (conv_rank, layer.in_channels, *layer.kernel_size)
                up = (layer.out_channels, conv_rank, 1, 1)
            self._handles.append(layer.register_forward_hook(self._hook(number)))
            self.down.append(nn.Parameter(torch.randn(down, generator=generator) / down[0]))
            self.up.append(nn.Parameter(torch.zeros(up)))

    def _hook(self, number: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            down, up = self.down[number], self.up[number]
            x = inputs[0].to(down.dtype)
            if isinstance(layer, nn.Conv2d):
                added = F.conv2d(F.conv2d(x, down, None, layer.stride, layer.padding), up)
            else:
                added = x @ down.T.to(down.dtype) @ up.T
            return output + added.to(output.dtype)

        return add

    def by_key(self) -> dict[str, nn.Parameter]:
        """Every matrix by its key in the file."""
        found: dict[str, nn.Parameter] = {}
        for name, down, up in zip(self.names, self.down, self.up, strict=True):
            for key, matrix in zip(self.keys, (down, up), strict=True):
                found[f"{name}{key}"] = matrix
        return found

    def remove(self) -> None:
        """Remove the hooks: the UNet is the base model again."""
        while self._handles:
            self._handles.pop().remove()


def kohya_layers(unet: UNet2DConditionModel, convolutions: bool) -> dict[str, nn.Module]:
    """Every linear layer of the UNet's attentions by kohya's name, and its ResNets'
    convolutions."""
    original = {}  # kohya's trainer has the original code's names for SDXL alone
    if family_of_unet(unet) == "SDXL":
        original = {own: name for name, own in original_layers(unet).items()}
    layers = {}
    for name, layer in unet.named_modules():
        linear = isinstance(layer, nn.Linear) and _ATTENTION.search(name)
        if linear or (convolutions and _CONVOLUTION.search(name)):
            plain = name.replace(".", "_")
            layers[f"lora_unet_{original.get(plain, plain)}"] = layer
    return layers


def _write(weights: Weights, path: Path, metadata: dict[str, str]) -> None:
    alphas = {
        key.replace("lora_down.weight", "alpha"): torch.tensor(float(len(down)))
        for key, down in weights.items()
        if key.endswith("lora_down.weight")
    }
    write_tensors(path, weights | alphas, metadata)


def _metadata(base: BaseModel, rank: int, conv_rank: int) -> dict[str, str]:
    """The entries of kohya's trainer by which programs recognise the family and the ranks."""
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank)),
    }
    if conv_rank:
        ranks = {"conv_dim": str(conv_rank), "conv_alpha": str(float(conv_rank))}
        metadata["ss_network_args"] = json.dumps(ranks)
    if (family := family_of_unet(base.unet)) in _VERSIONS:
        predicts_v = family != "SDXL" and base.prediction_type == "v_prediction"
        metadata["ss_v2"] = str(family == "SD2")
        metadata["ss_base_model_version"] = _VERSIONS[family] + "_v" * predicts_v
    return metadata
