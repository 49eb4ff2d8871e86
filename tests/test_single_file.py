"""Single-file checkpoints of the first Stable Diffusion release."""

import re

import pytest
import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.models.clip import CLIPTextConfig, CLIPTextModel

from animatediff_core.checkpoints.base import load_base
from animatediff_core.checkpoints.single_file import CONFIGS, clip_tokenizer


def test_the_word_pieces_are_clips_own():
    # ids as openai/clip-vit-large-patch14 gives them
    tokenizer = clip_tokenizer()
    assert len(tokenizer) == 49408
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("Hello, World!").input_ids == [49406, 3306, 267, 1002, 256, 49407]
    assert tokenizer("a", padding="max_length").input_ids == [49406, 320] + 75 * [49407]


@pytest.mark.slow
def test_a_full_size_checkpoint_opens_with_every_tensor_in_its_place(tmp_path):
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(CONFIGS / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(CONFIGS / "vae"))
        text = CLIPTextModel(
            CLIPTextConfig.from_json_file(CONFIGS / "text_encoder" / "config.json")
        )
    parts: list[nn.Module] = [unet, vae, text]
    own = [filled(part) for part in parts]
    named = {
        "model.diffusion_model.": {unet_key(k): t for k, t in own[0].items()},
        "first_stage_model.": dict(vae_item(k, t) for k, t in own[1].items()),
        "cond_stage_model.transformer.": {
            k if k.startswith("text_model.") else f"text_model.{k}": t for k, t in own[2].items()
        },
    }
    file = {prefix + key: t for prefix, tensors in named.items() for key, t in tensors.items()}
    assert len(file) == sum(map(len, own))
    save_file(file, tmp_path / "full.safetensors")
    base = load_base(str(tmp_path / "full.safetensors"), dtype=torch.float16)
    assert base.family == "SD1.5"
    for part, expected in zip((base.unet, base.vae, *base.text_encoders), own, strict=True):
        opened = part.state_dict()
        assert opened.keys() == expected.keys()
        for key, tensor in opened.items():
            assert torch.equal(tensor.half(), expected[key]), key


def filled(part: nn.Module) -> dict[str, Tensor]:
    """Tensors of the part's shapes, no two of them alike."""
    return {
        key: torch.full(tensor.shape, number / 1024, dtype=torch.float16)
        for number, (key, tensor) in enumerate(part.state_dict().items())
    }


RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1",
          "conv_shortcut": "skip_connection"}  # fmt: skip


def unet_key(key: str) -> str:
    """diffusers' name -> the first release's."""
    for theirs, official in (
        ("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"),
        ("conv_in", "input_blocks.0.0"), ("conv_norm_out", "out.0"), ("conv_out", "out.2"),
    ):  # fmt: skip
        if key.startswith(theirs):
            return key.replace(theirs, official)
    if ".resnets." in key:
        for theirs, official in RESNET.items():
            key = key.replace(f".{theirs}.", f".{official}.")
    key = re.sub(r"mid_block\.attentions\.0", "middle_block.1", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}", key)
    key = re.sub(
        r"down_blocks\.(\d)\.(resnets|attentions)\.(\d)",
        lambda m: f"input_blocks.{3 * int(m[1]) + int(m[3]) + 1}.{int(m[2] == 'attentions')}",
        key,
    )
    key = re.sub(
        r"up_blocks\.(\d)\.(resnets|attentions)\.(\d)",
        lambda m: f"output_blocks.{3 * int(m[1]) + int(m[3])}.{int(m[2] == 'attentions')}",
        key,
    )
    key = re.sub(
        r"down_blocks\.(\d)\.downsamplers\.0\.conv",
        lambda m: f"input_blocks.{3 * (int(m[1]) + 1)}.0.op",
        key,
    )
    return re.sub(
        r"up_blocks\.(\d)\.upsamplers\.0",
        lambda m: f"output_blocks.{3 * int(m[1]) + 2}.{1 if m[1] == '0' else 2}",
        key,
    )


def vae_item(key: str, tensor: Tensor) -> tuple[str, Tensor]:
    """diffusers' name -> the first release's, whose attention is made of 1 x 1 convolutions."""
    if ".attentions." in key and ".group_norm." not in key and tensor.ndim == 2:
        tensor = tensor[:, :, None, None]
    for theirs, official in (
        ("conv_shortcut", "nin_shortcut"), ("conv_norm_out", "norm_out"),
        ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
        ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
        ("mid_block.attentions.0.to_", "mid.attn_1."),
    ):  # fmt: skip
        key = key.replace(theirs, official)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{3 - int(m[1])}.block", key)
    return re.sub(
        r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", key
    ), tensor
