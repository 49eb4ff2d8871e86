"""The parts of world 2's family: ordinary diffusers and transformers classes, factor 8.

Legend: n pictures, b clips, f frames, h w latent size (16 at 128 pixels).
"""

from dataclasses import dataclass

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from diffusers.schedulers import DDPMScheduler
from transformers.models.clip import CLIPTextConfig, CLIPTextModel

from ...motion import LINEAR_BETAS, MotionModule, for_unet
from .words import END, START, TOKENS

VOCABULARY = 1280
"""Rows of the token table; more than any tokenizer of these words has."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large the family is."""

    vae: tuple[int, ...] = (32, 64, 128, 128)
    unet: tuple[int, ...] = (96, 160, 256)
    text: int = 192
    text_layers: int = 3
    heads: int = 4
    groups: int = 16
    judge: int = 32
    pixels: int = 128
    frames: int = 16


FULL = Sizes()
TOY = Sizes(
    vae=(8, 8, 16, 16), unet=(16, 32, 32), text=32, text_layers=1, groups=8, judge=8, pixels=64
)
"""For a smoke test on a CPU."""


def new_vae(sizes: Sizes = FULL) -> AutoencoderKL:
    """2.5 M parameters."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=sizes.vae,
        layers_per_block=1,
        norm_num_groups=sizes.groups,
        latent_channels=4,
        sample_size=sizes.pixels,
        scaling_factor=1.0,
    )


def new_text_encoder(sizes: Sizes = FULL) -> CLIPTextModel:
    """1.6 M parameters."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=VOCABULARY,
            hidden_size=sizes.text,
            intermediate_size=3 * sizes.text,
            projection_dim=sizes.text,
            num_hidden_layers=sizes.text_layers,
            num_attention_heads=sizes.text // 32,
            max_position_embeddings=TOKENS,
            bos_token_id=START,
            eos_token_id=END,
            pad_token_id=END,
        )
    )


def new_unet(sizes: Sizes = FULL) -> UNet2DConditionModel:
    """14 M parameters, text at 16 x 16 and 8 x 8."""
    return UNet2DConditionModel(
        sample_size=sizes.pixels // 8,
        in_channels=4,
        out_channels=4,
        block_out_channels=sizes.unet,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=sizes.text,
        attention_head_dim=sizes.heads,
        norm_num_groups=sizes.groups,
    )


def new_motion_module(sizes: Sizes = FULL) -> MotionModule:
    """7 M parameters, v2's arithmetic."""
    return MotionModule(
        for_unet(
            "v2",
            sizes.unet,
            layers_per_block=1,
            num_attention_heads=sizes.heads,
            norm_num_groups=sizes.groups,
            max_frames=32,
        )
    )


def new_scheduler() -> DDPMScheduler:
    """Velocity under the betas of the motion modules."""
    start, end, schedule = LINEAR_BETAS
    return DDPMScheduler(
        beta_start=start,
        beta_end=end,
        beta_schedule=schedule,
        prediction_type="v_prediction",
        clip_sample=False,
    )


UNUSED = 0.2
"""Deviation of a channel's posterior means below which the decoder ignores the channel."""


@torch.no_grad()
def normalize_latents(vae: AutoencoderKL, latents: torch.Tensor) -> None:
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
