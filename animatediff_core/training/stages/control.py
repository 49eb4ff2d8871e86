"""Stages that train a ControlNet (arXiv 2302.05543) or an IP-Adapter (2308.06721).

Both learn on single frames. What they have learned acts on every frame of a clip, beside any motion
module of the family.

Legend: b batch, c channels, h w latent size, H W pixels, n tokens, d features, p the projection.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers.models import ControlNetModel, UNet2DConditionModel
from diffusers.schedulers import DDPMScheduler
from torch import Tensor, nn
from transformers.models.clip import CLIPVisionModelWithProjection

from ...adapters.controlnet import controlnet_for
from ...diffusion.image_embeddings import clip_pixels
from ...diffusion.loss import image_loss
from ...errors import MediaError, TrainingError
from ...jobs.conditions import Canny
from ...media import read_picture
from ...media.edges import canny
from ...motion import Conditions, added_conditions
from ..clips import PICTURE_SUFFIXES, Condition, to_pixels
from .stage import Trainee

_EMBEDDING_CHANNELS = (16, 32, 96, 256)
"""Of the released ControlNets, one more than the halvings from pixels to latents."""

_TOKENS = 4
"""That a plain IP-Adapter makes of a picture; diffusers reads no other number."""


class LedLoss(nn.Module):
    """The image loss of a frozen UNet that another model leads by what it reads of pictures."""

    def __init__(
        self, unet: UNet2DConditionModel, leader: nn.Module, scheduler: DDPMScheduler
    ) -> None:
        super().__init__()
        self.unet, self.leader, self.scheduler = unet, leader, scheduler

    def forward(
        self,
        latents: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        text: Tensor,
        conditions: Conditions | None,
        pictures: Tensor,
    ) -> Tensor:
        """latents, noise: b c f h w, of which the first frame is used; pictures: b 3 H W, as the
        run's Condition gives them."""
        first, noises = latents[:, :, 0], noise[:, :, 0]
        noisy = self.scheduler.add_noise(first, noises, timesteps)
        led = self.led(noisy, timesteps, text, conditions or Conditions(), pictures)
        return image_loss(self.unet, self.scheduler, first, noises, timesteps, text, conditions=led)

    def led(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        text: Tensor,
        given: Conditions,
        pictures: Tensor,
    ) -> Conditions:
        """The conditions with what the leader adds to them. noisy: b c h w."""
        raise NotImplementedError


class ControlNetLoss(LedLoss):
    """Led by a ControlNet; pictures are its conditions, 0 to 1."""

    def led(
        self, noisy: Tensor, timesteps: Tensor, text: Tensor, given: Conditions, pictures: Tensor
    ) -> Conditions:
        """With the ControlNet's residuals."""
        down, mid = self.leader(
            noisy, timesteps, text, pictures,
            added_cond_kwargs=added_conditions(given, 1), return_dict=False,
        )  # fmt: skip
        return replace(given, down_residuals=tuple(down), mid_residual=mid)


class IPAdapterLoss(LedLoss):
    """Led by a frozen image encoder, to whose view the UNet's attentions learn to look; pictures
    are as CLIP sees them, zeros for none."""

    def led(
        self, noisy: Tensor, timesteps: Tensor, text: Tensor, given: Conditions, pictures: Tensor
    ) -> Conditions:
        """With the pictures' embeddings, b 1 p."""
        there = (pictures != 0).flatten(1).any(1).to(pictures).unsqueeze(1)  # b 1
        with torch.no_grad():
            embeddings = self.leader(pictures).image_embeds * there
        return replace(given, image_embeddings=(embeddings.unsqueeze(1),))


def new_controlnet(
    unet: UNet2DConditionModel, halvings: int, seed: int, *, small: bool = False
) -> ControlNetModel:
    """A copy of the UNet's first half whose outputs begin at zero; `small`: of its ResNets alone.

    `halvings`: how often the VAE halves a picture's width, which conditions must be too; 1 to 3.
    """
    if halvings not in range(1, len(_EMBEDDING_CHANNELS)):
        raise TrainingError(
            f"stage controlnet: the base model's VAE makes latents of 1/{2**halvings} of the size; "
            "1/2, 1/4 and 1/8 are supported"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        control = controlnet_for(unet, 3, _EMBEDDING_CHANNELS[: halvings + 1], small=small)
    known = unet.state_dict()
    own = control.state_dict()
    control.load_state_dict(own | {key: known[key] for key in own.keys() & known.keys()})
    return control


def controlnet_trainee(
    unet: UNet2DConditionModel, control: ControlNetModel, scheduler: DDPMScheduler
) -> Trainee:
    """All of a ControlNet over a frozen UNet."""
    unet.requires_grad_(False).eval()
    control.requires_grad_(True).train()
    loss = ControlNetLoss(unet, control, scheduler)
    return Trainee(loss, dict(control.named_parameters()), scheduler)


def new_ip_adapter(
    unet: UNet2DConditionModel, width: int, generator: torch.Generator
) -> dict[str, dict[str, Tensor]]:
    """A plain adapter's tensors before training, in the official file's two parts.

    `width`: of the encoder's projection. Keys and values begin as those of the text, as officially.
    """
    states = int(unet.config.cross_attention_dim)
    projection = torch.randn(_TOKENS * states, width, generator=generator) / width**0.5
    parts: dict[str, dict[str, Tensor]] = {
        "image_proj": {
            "proj.weight": projection, "proj.bias": torch.zeros(_TOKENS * states),
            "norm.weight": torch.ones(states), "norm.bias": torch.zeros(states),
        },
        "ip_adapter": {},
    }  # fmt: skip
    for number, name in enumerate(_text_attentions(unet)):
        attention = unet.get_submodule(name)
        for kind in ("k", "v"):
            weight: Tensor = getattr(attention, f"to_{kind}").weight
            parts["ip_adapter"][f"{2 * number + 1}.to_{kind}_ip.weight"] = weight.detach().clone()
    return parts


def ip_adapter_trainee(
    unet: UNet2DConditionModel,
    encoder: CLIPVisionModelWithProjection,
    scheduler: DDPMScheduler,
) -> Trainee:
    """The one adapter that is attached to a UNet; all else is frozen."""
    unet.requires_grad_(False).eval()
    projection = unet.encoder_hid_proj.image_projection_layers[0]
    named = {
        "image_proj.proj.weight": projection.image_embeds.weight,
        "image_proj.proj.bias": projection.image_embeds.bias,
        "image_proj.norm.weight": projection.norm.weight,
        "image_proj.norm.bias": projection.norm.bias,
    }
    for number, name in enumerate(_text_attentions(unet)):
        processor = unet.attn_processors[f"{name}.processor"]
        for kind in ("k", "v"):
            layer = getattr(processor, f"to_{kind}_ip")[0]
            named[f"ip_adapter.{2 * number + 1}.to_{kind}_ip.weight"] = layer.weight
    for parameter in named.values():
        parameter.requires_grad_(True)
    return Trainee(IPAdapterLoss(unet, encoder, scheduler), named, scheduler)


def _text_attentions(unet: UNet2DConditionModel) -> list[str]:
    """The attentions to the text, in the order that adapters count."""
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    return [name for name in names if not name.endswith("attn1")]


def edge_condition(given: Canny) -> Condition:
    """Edges of the sample itself: 3 h w, 0 or 1."""

    def edges(file: Path, pixels: Tensor) -> Tensor:
        picture = ((pixels.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
        return _unit(canny(picture, given.low, given.high))

    return edges


def paired_condition(folder: Path, size: tuple[int, int]) -> Condition:
    """The picture of the same name in `folder`, scaled and cut as the sample: 3 h w, 0 to 1."""
    if not folder.is_dir():
        raise TrainingError(
            f"{folder}: no such folder; set condition_folder to where the conditions are"
        )
    there = {p.stem: p for p in sorted(folder.iterdir()) if p.suffix.lower() in PICTURE_SUFFIXES}

    def paired(file: Path, pixels: Tensor) -> Tensor:
        if file.stem not in there:
            raise MediaError(f"{folder}: has no condition for {file.name}; add {file.stem}.png")
        return (to_pixels(read_picture(there[file.stem])[None], size)[0] + 1) / 2

    return paired


def clip_condition(size: int) -> Condition:
    """The sample as CLIP sees it: 3 size size."""

    def seen(file: Path, pixels: Tensor) -> Tensor:
        return clip_pixels(((pixels.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy(), size)

    return seen


def _unit(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 255
