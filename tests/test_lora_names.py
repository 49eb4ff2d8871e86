"""Names of LoRA layers: the original code's are mapped as diffusers' own converter does."""

import json

import pytest
import torch
from conftest import ROOT, new_unet
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)
from diffusers.models import UNet2DConditionModel
from test_single_file import unet_key

from animatediff_core.adapters.lora.names import plain_name
from animatediff_core.checkpoints.sd_names import original_layers

CONFIGS = ROOT / "animatediff_core" / "models" / "configs"


def full_size(family: str) -> UNet2DConditionModel:
    config = json.loads((CONFIGS / family / "unet" / "config.json").read_text())
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(config)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_every_layer_of_the_original_code_is_found(family):
    unet = full_size(family)
    names = {key.rpartition(".")[0] for key in unet.state_dict()}
    layers = original_layers(unet)
    for name in names:
        original = unet_key(f"{name}.weight", unet).removesuffix(".weight")
        found = layers[plain_name(f"lora_unet_{original.replace('.', '_')}")]
        assert found == name.replace(".", "_"), original
        dotted = plain_name(f"diffusion_model.{original}")
        assert layers[dotted] == found


def test_kohyas_sdxl_names_go_where_diffusers_converter_puts_them():
    unet = full_size("sdxl")
    layers = {
        name: layer for name, layer in unet.named_modules()
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d) and "sampler" not in name
    }  # fmt: skip
    originals = original_layers(unet)
    state, ours = {}, {}
    for number, name in enumerate(layers):
        original = unet_key(f"{name}.weight", unet).removesuffix(".weight").replace(".", "_")
        for kind in ("down", "up"):
            state[f"lora_unet_{original}.lora_{kind}.weight"] = torch.tensor([float(number)])
        ours[number] = originals[plain_name(f"lora_unet_{original}")]
    mapped = _maybe_map_sgm_blocks_to_diffusers(state, unet.config)
    theirs, _ = _convert_non_diffusers_lora_to_diffusers(mapped)
    assert len(theirs) == 2 * len(ours)
    for key, tensor in theirs.items():
        if key.endswith(".down.weight"):
            name = key.removeprefix("unet.").removesuffix(".down.weight").replace(".processor", "")
            name = name.replace("to_out_lora", "to_out_0").removesuffix(".lora")
            assert name.removesuffix("_lora").replace(".", "_") == ours[int(tensor)], key


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", "te1_text_model_encoder_layers_0_mlp_fc1"),
        ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
         "te1_text_model_encoder_layers_0_self_attn_q_proj"),
        ("lora_te2_text_projection", "te2_text_projection"),
        ("text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1",
         "te1_text_model_encoder_layers_0_mlp_fc1"),
        ("clip_g.transformer.text_model.encoder.layers.0.mlp.fc1",
         "te2_text_model_encoder_layers_0_mlp_fc1"),
        ("unet.base_model.model.mid_block.attentions.0.proj_in", "mid_block_attentions_0_proj_in"),
        ("text_encoder.base_model.model.text_model.encoder.layers.0.mlp.fc1",
         "te1_text_model_encoder_layers_0_mlp_fc1"),
        ("oft_te_text_model_encoder_layers_0_mlp_fc1", "te1_text_model_encoder_layers_0_mlp_fc1"),
        ("text_encoder.text_model.encoder.layers.0.self_attn.to_out",
         "te1_text_model_encoder_layers_0_self_attn_out_proj"),
        ("text_encoder_2.text_model.encoder.layers.3.self_attn.to_k",
         "te2_text_model_encoder_layers_3_self_attn_k_proj"),
        ("base_model.model.text_model.encoder.layers.0.mlp.fc2",
         "te1_text_model_encoder_layers_0_mlp_fc2"),
        ("lora_te2_transformer_resblocks_4_mlp_c_fc", "te2_text_model_encoder_layers_4_mlp_fc1"),
        ("lora_te2_transformer_resblocks_4_attn_out_proj",
         "te2_text_model_encoder_layers_4_self_attn_out_proj"),
        ("base_model.model.mid_block.attentions.0.proj_in", "mid_block_attentions_0_proj_in"),
        ("lycoris_down_blocks_0_resnets_0_conv1", "down_blocks_0_resnets_0_conv1"),
        ("unet.mid_block.motion_modules.0.transformer_blocks.0.attn2.to_q",
         "mid_block_motion_modules_0_temporal_transformer_transformer_blocks_0_"
         "attention_blocks_1_to_q"),
    ],
)  # fmt: skip
def test_one_spelling_for_every_dialect(given, plain):
    assert plain_name(given) == plain


def test_blocks_are_counted_by_the_models_own_layers():
    layers = original_layers(new_unet())  # with one ResNet a block
    assert layers["input_blocks_2_0_op"] == "down_blocks_0_downsamplers_0_conv"
    assert layers["output_blocks_3_1_proj_in"] == "up_blocks_1_attentions_1_proj_in"
    assert layers["output_blocks_1_1_conv"] == "up_blocks_0_upsamplers_0_conv"
    assert "down_blocks_0_downsamplers_0_conv" not in layers
