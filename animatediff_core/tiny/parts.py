"""The parts of the tiny families before training: ordinary diffusers and transformers classes.

Legend: n images, h w latent size.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers.models.clip import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..checkpoints.base_model import BaseModel
from ..diffusion.schedules import betas_of
from ..motion import LINEAR_BETAS

START, END = "<|startoftext|>", "<|endoftext|>"
UNUSED = 0.2
"""Deviation of a channel's posterior means below which the decoder ignores the channel."""


def new_vae(channels: Sequence[int], *, groups: int, pixels: int) -> AutoencoderKL:
    """A VAE with one ResNet a level, of factor 2 ** (levels - 1)."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=tuple(channels),
        layers_per_block=1,
        norm_num_groups=groups,
        latent_channels=4,
        sample_size=pixels,
        scaling_factor=1.0,
    )


def new_text_encoder(
    *, vocabulary: int, width: int, layers: int, tokens: int, start: int, end: int
) -> CLIPTextModel:
    """A text encoder. `start`, `end`: token ids; captions are padded with the end."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=3 * width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            max_position_embeddings=tokens,
            bos_token_id=start,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


def new_unet(
    channels: Sequence[int], *, text: int, heads: int, groups: int, size: int
) -> UNet2DConditionModel:
    """A UNet of three levels, with text at the upper two. `size`: h and w of the latents."""
    return UNet2DConditionModel(
        sample_size=size,
        in_channels=4,
        out_channels=4,
        block_out_channels=tuple(channels),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=text,
        attention_head_dim=heads,
        norm_num_groups=groups,
    )


def new_tokenizer(words: Sequence[str], *, tokens: int, first: Sequence[str] = ()) -> CLIPTokenizer:
    """Every word is one token; any other text falls back to its bytes.

    `first` are the tokens with the first ids, in their order.
    """
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=5000,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator([*words] * 3, trainer)
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    pieces = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *map("".join, merges)]
    order = dict.fromkeys([*first, *pieces, START, END])
    ids = {token: number for number, token in enumerate(order)}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=tokens)


def base_model(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    *,
    family: str,
    source: Path,
) -> BaseModel:
    """The base model of these parts: velocity under the betas of the motion modules."""
    betas = betas_of(LINEAR_BETAS)
    del betas["num_train_timesteps"]
    return BaseModel(
        unet=unet,
        vae=vae,
        text_encoders=[text_encoder],
        tokenizers=[tokenizer],
        scheduler_config={"prediction_type": "v_prediction", **betas},
        family=family,
        source=str(source),
    )


@torch.no_grad()
def normalize_latents(vae: AutoencoderKL, latents: Tensor) -> None:
    """Give the latents zero mean and unit variance in every channel; latents: n 4 h w.

    The change of scale goes into quant_conv and its inverse into post_quant_conv, so that the
    file stays an ordinary AutoencoderKL with scaling_factor 1. Unused channels become 0.
    """
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    used = (deviation >= UNUSED).float()
    deviation = torch.where(used > 0, deviation, 1.0)
    out, back = vae.quant_conv, vae.post_quant_conv
    out.bias[:4] = (out.bias[:4] - mean) / deviation * used
    out.weight[:4] *= (used / deviation).view(-1, 1, 1, 1)
    out.bias[4:] = (out.bias[4:] - 2 * deviation.log()) * used - 20 * (1 - used)
    out.weight[4:] *= used.view(-1, 1, 1, 1)
    back.bias += (back.weight[:, :, 0, 0] * mean).sum(1)
    back.weight *= (used * deviation).view(1, -1, 1, 1)
