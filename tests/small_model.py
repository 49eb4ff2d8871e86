"""A small random model as diffusers' and transformers' own save_pretrained write it."""

from pathlib import Path

import torch
from conftest import TINY, new_unet
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from diffusers.schedulers import DDIMScheduler
from transformers.models.clip import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

LEVELS = (32, 64, 64, 32)
"""As many as SD1.5 has, so that a v2 motion module fits."""
KINDS = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}


def write_model(folder: Path) -> None:
    """A whole folder: its UNet is `new_unet(LEVELS)`."""
    tokenizer = CLIPTokenizer.from_pretrained(TINY / "base" / "tokenizer")
    torch.manual_seed(1)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=77,
        )
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, latent_channels=4,
    )  # fmt: skip
    new_unet(LEVELS).save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    text.save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    DDIMScheduler().save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')


def write_sdxl(folder: Path) -> None:
    """As SDXL: two text encoders, whose pooled text the UNet reads with sizes, and three levels."""
    write_model(folder)
    torch.manual_seed(2)
    words = CLIPTextConfig.from_pretrained(folder / "text_encoder").vocab_size
    for name, width in (("text_encoder", 16), ("text_encoder_2", 24)):
        kind = CLIPTextModel if name == "text_encoder" else CLIPTextModelWithProjection
        config = CLIPTextConfig(
            vocab_size=words, hidden_size=width, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=77, projection_dim=24,
        )  # fmt: skip
        kind(config).save_pretrained(folder / name)
    CLIPTokenizer.from_pretrained(TINY / "base" / "tokenizer").save_pretrained(
        folder / "tokenizer_2"
    )
    UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 32, 64), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=40, attention_head_dim=2, norm_num_groups=8,
        addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
    ).save_pretrained(folder / "unet")  # fmt: skip
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')


def write_half(part: Path) -> None:
    """The fp16 variant of one part beside its plain weights."""
    KINDS[part.name].from_pretrained(part).half().save_pretrained(part, variant="fp16")
