"""Single-file checkpoints of the first Stable Diffusion release."""

import json
import re
import shutil

import pytest
import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.models.clip import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
)

from animatediff_core.checkpoints import single_file
from animatediff_core.checkpoints.base import load_base
from animatediff_core.checkpoints.single_file import CONFIGS, clip_tokenizer
from animatediff_core.errors import CheckpointError


def test_the_word_pieces_are_clips_own():
    # ids as openai/clip-vit-large-patch14 gives them
    tokenizer = clip_tokenizer()
    assert len(tokenizer) == 49408
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("Hello, World!").input_ids == [49406, 3306, 267, 1002, 256, 49407]
    assert tokenizer("a", padding="max_length").input_ids == [49406, 320] + 75 * [49407]


SMALL = {
    "sd15/unet": {"block_out_channels": [32, 64, 64, 64], "cross_attention_dim": 32},
    "sd15/vae": {"block_out_channels": [32, 32, 64, 64]},
    "sd15/text_encoder": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                          "num_attention_heads": 2, "projection_dim": 32},
    "sdxl/unet": {"block_out_channels": [32, 64, 64], "cross_attention_dim": 72,
                  "attention_head_dim": [2, 2, 2], "transformer_layers_per_block": [1, 1, 2],
                  "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 88},
    "sdxl/vae": {"block_out_channels": [32, 32, 64, 64]},
    "sdxl/text_encoder_2": {"hidden_size": 40, "intermediate_size": 64, "num_hidden_layers": 2,
                            "num_attention_heads": 2, "projection_dim": 40},
}  # fmt: skip


@pytest.fixture
def small_families(tmp_path, monkeypatch):
    """The package's families with fewer channels and layers."""
    configs = tmp_path / "configs"
    shutil.copytree(CONFIGS, configs)
    for name, changes in SMALL.items():
        file = configs / name / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    monkeypatch.setattr(single_file, "CONFIGS", configs)
    return configs


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_every_tensor_of_a_checkpoint_finds_its_place(tmp_path, small_families, family):
    check(tmp_path, small_families, family, torch.float32)


@pytest.mark.slow
def test_a_full_size_checkpoint_opens_with_every_tensor_in_its_place(tmp_path):
    check(tmp_path, CONFIGS, "sd15", torch.float16)


def test_a_checkpoint_without_its_text_encoder_is_refused(tmp_path, small_families):
    write_checkpoint(tmp_path / "m.safetensors", small_families, "sd15", leave="cond_stage_model.")
    with pytest.raises(CheckpointError, match="lacks .* tensors of its text encoder"):
        load_base(str(tmp_path / "m.safetensors"))


def check(folder, configs, family, dtype):
    own = write_checkpoint(folder / "m.safetensors", configs, family)
    base = load_base(str(folder / "m.safetensors"), dtype=dtype)
    parts = (base.unet, base.vae, *base.text_encoders)
    for part, expected in zip(parts, own, strict=True):
        opened = part.state_dict()
        assert opened.keys() == expected.keys()
        for key, tensor in opened.items():
            assert torch.equal(tensor.half(), expected[key]), key


def write_checkpoint(path, configs, family, leave="none"):
    """A file in the family's own layout; returns what each part must hold."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(
            UNet2DConditionModel.load_config(configs / family / "unet")
        )
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(configs / family / "vae"))
        parts: list[nn.Module] = [unet, vae, CLIPTextModel(text_config(configs, "sd15", ""))]
        if family == "sdxl":
            parts.append(CLIPTextModelWithProjection(text_config(configs, "sdxl", "_2")))
    own = [filled(part) for part in parts]
    texts = ["cond_stage_model.transformer."]
    if family == "sdxl":
        texts = ["conditioner.embedders.0.transformer."]
    named = {
        "model.diffusion_model.": {unet_key(k, unet): t for k, t in own[0].items()},
        "first_stage_model.": dict(vae_item(k, t) for k, t in own[1].items()),
        texts[0]: {f"text_model.{k.removeprefix('text_model.')}": t for k, t in own[2].items()},
    }
    if family == "sdxl":
        named["conditioner.embedders.1.model."] = open_clip(own[3])
    file = {prefix + key: t for prefix, tensors in named.items() for key, t in tensors.items()}
    save_file({k: t.contiguous() for k, t in file.items() if not k.startswith(leave)}, path)
    return own


def text_config(configs, family, number):
    return CLIPTextConfig.from_json_file(configs / family / f"text_encoder{number}" / "config.json")


def filled(part: nn.Module) -> dict[str, Tensor]:
    """Tensors of the part's shapes, no two of them alike."""
    return {
        key: torch.full(tensor.shape, number / 1024, dtype=torch.float16)
        for number, (key, tensor) in enumerate(part.state_dict().items())
    }


RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1",
          "conv_shortcut": "skip_connection"}  # fmt: skip


def unet_key(key: str, unet: UNet2DConditionModel) -> str:
    """diffusers' name -> the first release's."""
    for theirs, official in (
        ("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"),
        ("add_embedding.linear_1", "label_emb.0.0"), ("add_embedding.linear_2", "label_emb.0.2"),
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
        lambda m: f"output_blocks.{3 * int(m[1]) + 2}.{1 + has_attention(unet, int(m[1]))}",
        key,
    )


def has_attention(unet: UNet2DConditionModel, up_block: int) -> bool:
    return hasattr(unet.up_blocks[up_block], "attentions")


def open_clip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder in OpenCLIP's layout, whose query, key and value are one tensor."""
    out = {}
    for key, tensor in tensors.items():
        name = key.removeprefix("text_model.")
        for theirs, official in (
            ("embeddings.token_embedding", "token_embedding"),
            ("embeddings.position_embedding.weight", "positional_embedding"),
            ("final_layer_norm", "ln_final"), ("encoder.layers", "transformer.resblocks"),
            ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"), ("self_attn.out_proj", "attn.out_proj"),
            ("text_projection.weight", "text_projection"),
        ):  # fmt: skip
            name = name.replace(theirs, official)
        if ".self_attn.q_proj." in name:
            others = [key.replace("q_proj", f"{o}_proj") for o in "kv"]
            joined = torch.cat([tensor, *(tensors[other] for other in others)])
            out[name.replace("self_attn.q_proj.", "attn.in_proj_")] = joined
        elif "self_attn" not in name:
            out[name] = tensor.T if name == "text_projection" else tensor
    return out


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
