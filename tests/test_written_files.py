"""Files for other programs: each has the names by which those programs recognise it.

The lists are facts of ComfyUI 0.3, AnimateDiff-Evolved, sd-webui-animatediff, the web UI, kohya's
scripts and diffusers 0.42.
"""

from types import SimpleNamespace

import pytest
import torch
from conftest import new_motion, new_unet
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers
from diffusers.loaders.single_file_utils import infer_diffusers_model_type
from safetensors import safe_open
from safetensors.torch import load_file
from test_lora_names import full_size

from animatediff_core import MotionModule, load_motion_module, save_motion_module
from animatediff_core.checkpoints.motion_module import official_tensors
from animatediff_core.motion import VERSIONS
from animatediff_core.training.stages.lora import KOHYA, LoraLayers, _metadata, _write, kohya_layers

_SITE = [
    "norm.weight", "norm.bias", "proj_in.weight", "proj_in.bias", "proj_out.weight",
    "proj_out.bias",
    *(
        f"transformer_blocks.0.{name}"
        for number in (0, 1)
        for name in (
            f"attention_blocks.{number}.to_q.weight", f"attention_blocks.{number}.to_k.weight",
            f"attention_blocks.{number}.to_v.weight", f"attention_blocks.{number}.to_out.0.weight",
            f"attention_blocks.{number}.to_out.0.bias",
            f"attention_blocks.{number}.pos_encoder.pe",
            f"norms.{number}.weight", f"norms.{number}.bias",
        )
    ),
    "transformer_blocks.0.ff.net.0.proj.weight", "transformer_blocks.0.ff.net.0.proj.bias",
    "transformer_blocks.0.ff.net.2.weight", "transformer_blocks.0.ff.net.2.bias",
    "transformer_blocks.0.ff_norm.weight", "transformer_blocks.0.ff_norm.bias",
]  # fmt: skip
"""The tensors of one site, which sd-webui-animatediff loads strictly."""


@pytest.mark.parametrize(("version", "frames"), [("v2", 32), ("mine", 24), ("animatelcm", 64)])
def test_a_motion_file_has_the_positions_by_which_other_programs_tell_versions_apart(
    tmp_path, version, frames
):
    motion = new_motion((32, 64), version=version, max_frames=frames)
    save_motion_module(motion, tmp_path / "m.safetensors")
    content = load_file(tmp_path / "m.safetensors")
    has_positions = version != "animatelcm"  # without any it is AnimateLCM to ADE and the web UI
    names = [name for name in _SITE if has_positions or "pos_encoder" not in name]
    first = "down_blocks.0.motion_modules.0.temporal_transformer."
    assert {key.removeprefix(first) for key in content if key.startswith(first)} == set(names)
    sites = {key.partition("temporal_transformer.")[0] for key in content}
    assert len(content) == len(names) * len(sites)
    if has_positions:
        position = content[f"{first}transformer_blocks.0.attention_blocks.1.pos_encoder.pe"]
        assert position.shape == (1, frames, 32)
        assert position[0, 2, :2].tolist() == pytest.approx([0.909297, -0.416147], abs=1e-5)
    assert load_motion_module(tmp_path / "m.safetensors").config == motion.config
    motion.mid_block.motion_modules[0].temporal_transformer.transformer_blocks[0].attention_blocks[
        0
    ].positions = torch.ones(frames, 64)
    save_motion_module(motion, tmp_path / "own.safetensors")
    key = "mid_block.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0"
    table = load_file(tmp_path / "own.safetensors")[f"{key}.pos_encoder.pe"]
    assert torch.equal(table, torch.ones(1, frames, 64))  # trained ones are never lost


VERSIONS_ELSEWHERE = {
    "v1": ("SD1.5", "AnimateDiff", "v1", "animatediff_v1"),
    "v2": ("SD1.5", "AnimateDiff", "v2", "animatediff_v2"),
    "v3": ("SD1.5", "AnimateDiff", "v3", "animatediff_v3"),
    "lightning": ("SD1.5", "AnimateDiff", "v2", "animatediff_v2"),
    "pia": ("SD1.5", "PIA", "v3", "animatediff_v3"),
    "sdxl-beta": ("SDXL", "AnimateDiff", "v1", "animatediff_sdxl_beta"),
    "hotshot-xl": ("SDXL", "AnimateDiff", "v1", "animatediff_sdxl_beta"),
    "animatelcm": ("SD1.5", "AnimateLCM", "v2", "v1"),
}
"""Family, format and version to AnimateDiff-Evolved, and the type to diffusers."""


@pytest.mark.parametrize("version", VERSIONS_ELSEWHERE)
def test_a_full_size_motion_file_is_what_it_is_to_other_programs(version):
    with torch.device("meta"):
        tensors = official_tensors(MotionModule(VERSIONS[version]))
    highest = max(int(key.split(".")[1]) for key in tensors if key.startswith("down_blocks."))
    positions = [tensor.shape[1] for key, tensor in tensors.items() if "pos_encoder" in key]
    form = "AnimateDiff" if positions else "AnimateLCM"
    if {"conv_in.weight", "conv_in.bias"} <= tensors.keys():
        form = "PIA"
    number = "v3" if highest == 3 and positions[:1] == [32] else "v1"
    if any(key.startswith("mid_block.") for key in tensors):
        number = "v2"
    family = {3: "SD1.5", 2: "SDXL"}[highest]
    assert (family, form, number, infer_diffusers_model_type(tensors)) == VERSIONS_ELSEWHERE[
        version
    ]


def lora_file(folder, unet, conv_rank=0, prediction_type="epsilon"):
    """Tensors and metadata of an untrained LoRA of rank 1, as the stage writes them."""
    layers = LoraLayers(
        kohya_layers(unet, conv_rank > 0), 1, torch.Generator().manual_seed(0), conv_rank, KOHYA
    )
    layers.remove()
    base = SimpleNamespace(unet=unet, prediction_type=prediction_type)
    path = folder / "lora.safetensors"
    _write(dict(layers.by_key()), path, _metadata(base, 1, conv_rank))
    with safe_open(path, "pt") as file:
        return load_file(path), file.metadata()


def test_a_lora_has_kohyas_keys_which_every_program_reads(tmp_path):
    unet = new_unet()
    tensors, metadata = lora_file(tmp_path, unet, conv_rank=2)
    attention = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
    convolution = "lora_unet_up_blocks_0_resnets_0_conv_shortcut"
    for layer, rank in ((attention, 1), (convolution, 2)):
        found = {key.removeprefix(layer) for key in tensors if key.startswith(f"{layer}.")}
        assert found == {".lora_down.weight", ".lora_up.weight", ".alpha"}
        assert tensors[f"{layer}.alpha"] == len(tensors[f"{layer}.lora_down.weight"]) == rank
    assert {key.partition(".")[0][:10] for key in tensors} == {"lora_unet_"}
    assert metadata == {
        "ss_network_module": "networks.lora", "ss_network_dim": "1", "ss_network_alpha": "1.0",
        "ss_network_args": '{"conv_dim": "2", "conv_alpha": "2.0"}',
    }  # fmt: skip
    names, alphas = _convert_non_diffusers_lora_to_diffusers(dict(tensors))
    assert len(names) == 2 * len(tensors) // 3
    attention = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor"
    assert f"{attention}.to_out_lora.down.weight" in names
    assert "unet.up_blocks.0.resnets.0.conv_shortcut.lora.up.weight" in names
    assert len(alphas) == len(tensors) // 3


@pytest.mark.parametrize(
    ("family", "prediction_type", "version", "is_v2"),
    [
        ("sd15", "epsilon", "sd_v1", "False"),
        ("sd21", "v_prediction", "sd_v2_v", "True"),
        ("sdxl", "epsilon", "sdxl_base_v1-0", "False"),
    ],
)
def test_a_lora_says_its_family_in_kohyas_words(tmp_path, family, prediction_type, version, is_v2):
    unet = full_size(family)
    tensors, metadata = lora_file(tmp_path, unet, prediction_type=prediction_type)
    assert (metadata["ss_base_model_version"], metadata["ss_v2"]) == (version, is_v2)
    original = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.alpha"
    own = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.alpha"
    assert (original in tensors, own in tensors) == (family == "sdxl", family != "sdxl")
