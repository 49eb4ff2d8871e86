"""The models that are measured: the bundled one, and random weights of other sizes."""

import json
import shutil
from pathlib import Path

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

import animatediff_core as ad
from animatediff_core.checkpoints.families import CONFIGS
from animatediff_core.checkpoints.loading import load_base
from animatediff_core.checkpoints.sd_names import single_file_tensors
from animatediff_core.checkpoints.single_file import clip_tokenizer
from animatediff_core.checkpoints.write import write_single_file
from animatediff_core.motion import VERSIONS, MotionConfig, MotionModule
from animatediff_core.planning.models import ModelSpec, find_model
from animatediff_core.sampling.loading import load_model
from animatediff_core.weights.places import bundled_path

LEVELS = {
    "small": (64, 128, 256),
    "middle": (160, 320, 640, 640),
    "full": VERSIONS["v2"].block_out_channels,
}
"""Channels: of a small model, one of 330 million parameters, and SD1.5's with 1.3 billion."""


def model(size: str, frames: int) -> tuple[UNet2DConditionModel, MotionModule]:
    """The bundled model, or random weights of a size, in fp32."""
    if size == "bundled":
        base, motion = load_model(
            find_model(ModelSpec(base="bundled:tiny"), offline=True), offline=True
        )
        unet = base.unet
    else:
        unet, motion = random_model(size, frames)
    return unet.requires_grad_(False), motion.requires_grad_(False)


def random_model(size: str, frames: int) -> tuple[UNet2DConditionModel, MotionModule]:
    """A UNet for text of 768 numbers, and a motion module that moves it."""
    layers, most = (1, max(32, frames)) if size == "small" else (2, 32)
    return random_parts(LEVELS[size], layers, most, text=768)


def random_parts(
    channels: tuple[int, ...], layers: int, most: int, text: int
) -> tuple[UNet2DConditionModel, MotionModule]:
    """`layers` of each level, at `most` frames, text of a width."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D",) * (len(channels) - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (len(channels) - 1),
        layers_per_block=layers,
        cross_attention_dim=text,
        attention_head_dim=8,
    ).eval()
    motion = MotionModule(
        MotionConfig(
            block_out_channels=channels, layers_per_block=layers, max_frames=most,
            mid_block=True, version="v2",
        )
    ).eval()  # fmt: skip
    for name, parameter in motion.named_parameters():
        if "proj_out" in name:
            nn.init.normal_(parameter, std=0.05)
    return unet, motion


def write_model(size: str, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """`base` and `motion` as diffusers' folders, of random weights, if they are not there yet.

    Full is SD1.5 with words and scheduler of the bundled model; of other sizes all but the UNet is
    the bundled model's.
    """
    if (folder / "motion").is_dir():
        return
    shutil.rmtree(folder, ignore_errors=True)
    base = folder / "base"
    shutil.copytree(bundled_path("bundled:tiny/base"), base)
    if size == "full":
        shutil.copytree(CONFIGS / "sd15", base, dirs_exist_ok=True)
        _set_tokens(base / "tokenizer" / "tokenizer_config.json", 77)
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(base / "vae"))
        nn.Module.to(vae, dtype=dtype).save_pretrained(base / "vae")
        text = CLIPTextModel(CLIPTextConfig.from_pretrained(base / "text_encoder"))
        text.to(dtype).save_pretrained(base / "text_encoder")
    unet, motion = random_parts(LEVELS[size], 2, 32, text=768 if size == "full" else 128)
    nn.Module.to(unet, dtype=dtype).save_pretrained(base / "unet")
    write_adapter(motion.to(dtype), folder / "motion")


def write_forms(size: str, folder: Path) -> None:
    """The model in fp16 as a folder, and of the full size as one file and as a pickle of it."""
    write_model(size, folder, torch.float16)
    single = folder / "single.safetensors"
    if size == "full" and not single.exists():
        base = load_base(str(folder / "base"), dtype=torch.float16)
        base.tokenizers = [clip_tokenizer()]  # the folder's has fewer words than the text encoder
        write_single_file(base, single)
        torch.save({"state_dict": single_file_tensors(base)}, single.with_suffix(".ckpt"))


def _set_tokens(config: Path, tokens: int) -> None:
    """How long a tokenizer's texts are."""
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_max_length": tokens}))


def write_adapter(motion: MotionModule, folder: Path) -> None:
    """A motion module as diffusers opens it, whole or not at all."""
    beside = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    ad.save_motion_module(motion, beside, form="diffusers")
    beside.rename(folder)
