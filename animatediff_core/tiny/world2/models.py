"""Sizes of world 2's family, and its parts before training. The VAE has factor 8."""

from dataclasses import dataclass

from diffusers.models import AutoencoderKL, UNet2DConditionModel
from transformers.models.clip import CLIPTextModel

from ...motion import MotionModule, for_unet
from .. import parts
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


def new_vae(sizes: Sizes) -> AutoencoderKL:
    """2.5 M parameters."""
    return parts.new_vae(sizes.vae, groups=sizes.groups, pixels=sizes.pixels)


def new_text_encoder(sizes: Sizes) -> CLIPTextModel:
    """1.6 M parameters."""
    return parts.new_text_encoder(
        vocabulary=VOCABULARY,
        width=sizes.text,
        layers=sizes.text_layers,
        tokens=TOKENS,
        start=START,
        end=END,
    )


def new_unet(sizes: Sizes) -> UNet2DConditionModel:
    """14 M parameters."""
    return parts.new_unet(
        sizes.unet,
        text=sizes.text,
        heads=sizes.heads,
        groups=sizes.groups,
        size=sizes.pixels // 8,
    )


def new_motion_module(sizes: Sizes) -> MotionModule:
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
