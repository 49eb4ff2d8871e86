"""Stage `ip-adapter` (arXiv 2308.06721): attentions to an image's embedding, over a frozen UNet.

It trains on single frames and guides every frame of a clip, with any motion module of the family.

Legend: b batch, c channels, h w latent size, H W pixels, p features of the image embedding.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from diffusers.models import UNet2DConditionModel
from diffusers.schedulers import DDPMScheduler
from torch import Tensor, nn
from transformers.models.clip import CLIPVisionModelWithProjection

from ...adapters.ip_adapter import IPAdapterWeights, attach_ip_adapters, load_image_encoder
from ...checkpoints.base_model import BaseModel
from ...diffusion.image_embeddings import clip_pixels
from ...motion import Conditions
from ...weights.places import local_path
from ..clips import ReadCondition, to_image
from ..config import TrainConfig
from ..stage import ImageLoss, Stage, frozen_text, image_scheduler

IP_ADAPTER_FILE = "ip_adapter.safetensors"
_TOKENS = 4
"""Tokens that a plain IP-Adapter makes of an image; diffusers reads no other number."""


def ip_adapter_stage(config: TrainConfig, base: BaseModel, *, offline: bool) -> Stage:
    """Train a new plain IP-Adapter; it is written in the official keys."""
    path = local_path(str(config.image_encoder), "image encoder", offline=offline)
    encoder = load_image_encoder(path)
    generator = torch.Generator().manual_seed(config.seed)
    parts = new_ip_adapter(base.unet, encoder.config.projection_dim, generator)
    attach_ip_adapters(base.unet, [(IPAdapterWeights(path, "plain", parts), 1.0)])
    base.unet.requires_grad_(False).eval()
    parameters = _attached_parameters(base.unet)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    return Stage(
        loss=IPAdapterLoss(base.unet, encoder, image_scheduler(config, base)),
        parameters=parameters,
        embed=frozen_text(config, base),
        file_name=IP_ADAPTER_FILE,
        condition=clip_condition(encoder.config.image_size),
    )


class IPAdapterLoss(ImageLoss):
    """Loss of the UNet with embeddings of the samples' images, by a frozen encoder.

    The images are normalised for CLIP, zeros for none.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        encoder: CLIPVisionModelWithProjection,
        scheduler: DDPMScheduler,
    ) -> None:
        super().__init__(unet, scheduler)
        self.encoder = encoder

    def condition(
        self,
        images: Tensor,
        noisy: Tensor,
        timesteps: Tensor,
        text: Tensor,
        conditions: Conditions,
    ) -> Conditions:
        present = (images != 0).flatten(1).any(1).to(images).unsqueeze(1)  # b 1
        with torch.no_grad():
            embeddings = self.encoder(images).image_embeds * present  # b p
        return replace(conditions, image_embeddings=(embeddings.unsqueeze(1),))


def new_ip_adapter(
    unet: UNet2DConditionModel, width: int, generator: torch.Generator
) -> dict[str, dict[str, Tensor]]:
    """Tensors of a plain adapter before training, in the official file's two parts.

    `width`: features of the image embedding. Keys and values start as those of the text attention.
    """
    features = int(unet.config.cross_attention_dim)
    projection = torch.randn(_TOKENS * features, width, generator=generator) / width**0.5
    attentions = {}
    for number, name in enumerate(_text_attentions(unet)):
        layer = unet.get_submodule(name)
        for kind in ("k", "v"):
            weight: Tensor = getattr(layer, f"to_{kind}").weight
            attentions[f"{2 * number + 1}.to_{kind}_ip.weight"] = weight.detach().clone()
    return {
        "image_proj": {
            "proj.weight": projection,
            "proj.bias": torch.zeros(_TOKENS * features),
            "norm.weight": torch.ones(features),
            "norm.bias": torch.zeros(features),
        },
        "ip_adapter": attentions,
    }


def _attached_parameters(unet: UNet2DConditionModel) -> dict[str, nn.Parameter]:
    """Weights of the one attached adapter, by official key."""
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
    return named


def _text_attentions(unet: UNet2DConditionModel) -> list[str]:
    """Attentions to the text, in the order of the official numbers."""
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    return [name for name in names if not name.endswith("attn1")]


def clip_condition(size: int) -> ReadCondition:
    """The sample, normalised for CLIP: 3 size size."""
    return partial(_clip_input, size)


def _clip_input(size: int, file: Path, pixels: Tensor) -> Tensor:
    return clip_pixels(to_image(pixels), size)
