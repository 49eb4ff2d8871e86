"""Stage `controlnet` (arXiv 2302.05543): a copy of the UNet's first half, over a frozen UNet.

It trains on single frames and guides every frame of a clip, with any motion module of the family.

Legend: b batch, c channels, h w latent size, H W pixels.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from diffusers.models import ControlNetModel, UNet2DConditionModel
from diffusers.schedulers import DDPMScheduler
from torch import Tensor

from ...adapters.controlnet import controlnet_for, load_controlnet
from ...checkpoints.base_model import BaseModel
from ...errors import MediaError, TrainingError
from ...jobs.conditions import Canny
from ...media.edges import canny
from ...media.image import read_image
from ...media.opening import is_hidden, is_image
from ...motion import Conditions, added_conditions
from ...weights.files import write_tensors
from ...weights.places import local_path
from ..clips import ReadCondition, to_image
from ..config import TrainConfig
from ..pixels import to_pixels
from ..stage import ImageLoss, Stage, Weights, frozen_text, image_scheduler

CONTROLNET_FILE = "controlnet/diffusion_pytorch_model.safetensors"
"""The folder gets a config.json too, so diffusers opens it; other programs take the file."""
_EMBEDDING_CHANNELS = (16, 32, 96, 256)
"""Channels of the released ControlNets: one more than the halvings from pixels to latents."""


def controlnet_stage(config: TrainConfig, base: BaseModel, *, offline: bool) -> Stage:
    """Train a new ControlNet, or the one of the configuration."""
    if config.controlnet is not None:
        controlnet = load_controlnet(
            local_path(config.controlnet, "control", offline=offline), base.unet
        )
    else:
        halvings = base.vae_scale_factor.bit_length() - 1
        controlnet = new_controlnet(base.unet, halvings, config.seed, small=bool(config.small))
    base.unet.requires_grad_(False).eval()
    controlnet.requires_grad_(True).train()
    if config.canny is not None:
        condition = edge_condition(config.canny)
    else:
        condition = paired_condition(Path(str(config.condition_folder)), config.data.sample_size)

    def write(weights: Weights, path: Path) -> None:
        small = "CrossAttnDownBlock2D" not in controlnet.config.down_block_types
        marks = {"animatediff_controlnet": "small, ResNets alone"} if small else {}
        write_tensors(path, weights, {"format": "pt", **marks})
        controlnet.save_config(path.parent)

    return Stage(
        loss=ControlNetLoss(base.unet, controlnet, image_scheduler(config, base)),
        parameters=dict(controlnet.named_parameters()),
        embed=frozen_text(config, base),
        file_name=CONTROLNET_FILE,
        write=write,
        condition=condition,
        controlnet=controlnet,
    )


class ControlNetLoss(ImageLoss):
    """Loss of the UNet with the residuals of a ControlNet; its images have values of 0 to 1."""

    def __init__(
        self, unet: UNet2DConditionModel, controlnet: ControlNetModel, scheduler: DDPMScheduler
    ) -> None:
        super().__init__(unet, scheduler)
        self.controlnet = controlnet

    def condition(
        self,
        images: Tensor,
        noisy: Tensor,
        timesteps: Tensor,
        text: Tensor,
        conditions: Conditions,
    ) -> Conditions:
        down, mid = self.controlnet(
            noisy,
            timesteps,
            text,
            images,
            added_cond_kwargs=added_conditions(conditions, 1),
            return_dict=False,
        )
        return replace(conditions, down_residuals=tuple(down), mid_residual=mid)


def new_controlnet(
    unet: UNet2DConditionModel, halvings: int, seed: int, *, small: bool = False
) -> ControlNetModel:
    """A copy of the UNet's first half with zero-initialised outputs; `small`: only its ResNets.

    `halvings`: how often the VAE halves the width of an image, 1 to 3.
    """
    if halvings not in range(1, len(_EMBEDDING_CHANNELS)):
        raise TrainingError(
            f"stage controlnet: the base model's VAE makes latents of 1/{2**halvings} of the size; "
            "1/2, 1/4 and 1/8 are supported"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        controlnet = controlnet_for(unet, 3, _EMBEDDING_CHANNELS[: halvings + 1], small=small)
    weights, source = controlnet.state_dict(), unet.state_dict()
    weights |= {key: source[key] for key in weights.keys() & source.keys()}
    controlnet.load_state_dict(weights)
    return controlnet


def edge_condition(settings: Canny) -> ReadCondition:
    """Edges of the sample itself: 3 H W, 0 or 1."""
    return partial(_edges, settings)


def _edges(settings: Canny, file: Path, pixels: Tensor) -> Tensor:
    found = canny(to_image(pixels), settings.low, settings.high)
    return torch.from_numpy(found).permute(2, 0, 1).float() / 255


def paired_condition(folder: Path, size: tuple[int, int]) -> ReadCondition:
    """The image of the sample's name in `folder`, scaled and cropped alike: 3 H W, 0 to 1."""
    if not folder.is_dir():
        raise TrainingError(
            f"{folder}: no such folder; set condition_folder to where the conditions are"
        )
    files = {p.stem: p for p in sorted(folder.iterdir()) if is_image(p) and not is_hidden(p)}
    return partial(_paired, folder, files, size)


def _paired(
    folder: Path, files: Mapping[str, Path], size: tuple[int, int], file: Path, pixels: Tensor
) -> Tensor:
    if file.stem not in files:
        raise MediaError(f"{folder}: has no condition for {file.name}; add {file.stem}.png")
    return (to_pixels(read_image(files[file.stem])[None], size)[0] + 1) / 2
