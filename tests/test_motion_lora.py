"""MotionLoRA in every dialect: which layers of a motion module change, and what is left out."""

import re

import pytest
import torch
from conftest import new_motion
from safetensors.torch import save_file

from animatediff_core import apply_motion_lora
from animatediff_core.adapters.identify import identify
from animatediff_core.errors import CheckpointError


def motion_lora(motion, rank: int = 2):
    tensors = {}
    for key, weight in motion.state_dict().items():
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            if key.endswith(f"{name}.weight"):
                stem = key.removesuffix(f"{name}.weight") + f"processor.{name[:6].rstrip('.')}_lora"
                tensors[f"{stem}.up.weight"] = torch.randn(weight.shape[0], rank)
                tensors[f"{stem}.down.weight"] = torch.randn(rank, weight.shape[1])
    return tensors


def test_motion_lora_changes_eight_layers_a_site_and_adds_up(tmp_path):
    motion = new_motion()
    save_file(motion_lora(motion), tmp_path / "l.safetensors")
    before = {k: t.clone() for k, t in motion.state_dict().items()}
    assert apply_motion_lora(motion, tmp_path / "l.safetensors", 1.0) == 8 * 7
    assert apply_motion_lora(motion, tmp_path / "l.safetensors", -1.0) == 8 * 7
    assert all(torch.allclose(t, before[k], atol=1e-5) for k, t in motion.state_dict().items())


def test_a_full_v2_motion_lora_changes_168_layers(tmp_path):
    motion = new_motion((32, 32, 64, 32), layers_per_block=2)
    save_file(motion_lora(motion), tmp_path / "l.safetensors")
    assert apply_motion_lora(motion, tmp_path / "l.safetensors", 1.0) == 168


def test_a_motion_lora_of_the_mid_block_alone_needs_one(tmp_path):
    whole = motion_lora(new_motion())
    save_file({k: t for k, t in whole.items() if k.startswith("mid_block")},
              tmp_path / "l.safetensors")  # fmt: skip
    with pytest.raises(CheckpointError, match="changes only the mid block, which this v3 module"):
        apply_motion_lora(new_motion(mid_block=False, version="v3"), tmp_path / "l.safetensors")


DIALECTS = {
    "converted": "unet.{site}.transformer_blocks.0.{attention}.processor.{name}_lora.{up}.weight",
    "PEFT": "unet.{site}.transformer_blocks.0.{attention}.{name}.lora_{AB}.weight",
    "old diffusers": "unet.{site}.transformer_blocks.0.{attention}.{name}.lora.{up}.weight",
    "trainer": "module.{site}.temporal_transformer.transformer_blocks.0.attention_blocks.{n}."
               "processor.{name}_lora.{up}.weight",
    "kohya": "lora_unet_{site_}_temporal_transformer_transformer_blocks_0_attention_blocks_{n}_"
             "{name_}.lora_{up}.weight",
    "kohya of diffusers": "lora_unet_{site_}_transformer_blocks_0_{attention}_{name_}."
                          "lora_{up}.weight",
}  # fmt: skip


@pytest.mark.parametrize("form", DIALECTS)
def test_motion_loras_of_diffusers_and_trainers_change_what_the_official_one_does(tmp_path, form):
    official = motion_lora(new_motion())
    pattern = re.compile(
        r"(.+)\.temporal_transformer\.transformer_blocks\.0\.attention_blocks\.(\d)\.processor\."
        r"(to_\w+)_lora\.(up|down)\.weight"
    )
    renamed = {}
    for key, tensor in official.items():
        site, n, name, up = pattern.fullmatch(key).groups()
        name = "to_out.0" if name == "to_out" and form in ("PEFT", "old diffusers") else name
        site_, name_ = site.replace(".", "_"), name.replace("to_out", "to_out_0")
        renamed[DIALECTS[form].format(
            site=site, site_=site_, attention=f"attn{int(n) + 1}", n=n, name=name, name_=name_,
            up=up, AB="B" if up == "up" else "A",
        )] = tensor  # fmt: skip
    save_file(official, tmp_path / "official.safetensors")
    save_file(renamed, tmp_path / "theirs.safetensors")
    assert identify(tmp_path / "theirs.safetensors").kind == "MotionLoRA"
    one, other = new_motion(), new_motion()
    assert apply_motion_lora(one, tmp_path / "official.safetensors", 0.8) == 56
    assert apply_motion_lora(other, tmp_path / "theirs.safetensors", 0.8) == 56
    assert all(torch.equal(t, other.state_dict()[k]) for k, t in one.state_dict().items())


def test_a_motion_lora_for_a_mid_block_says_what_it_leaves_out(tmp_path, caplog):
    save_file(motion_lora(new_motion()), tmp_path / "l.safetensors")
    motion = new_motion(mid_block=False, version="v3")
    assert apply_motion_lora(motion, tmp_path / "l.safetensors", 1.0) == 8 * 6
    assert "8 layers for a mid block, which this module lacks, are left out" in caplog.text


def test_motion_directors_keys_reach_every_linear_layer(tmp_path):
    motion = new_motion()
    block = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0"
    tensors = {}
    for layer, spelled in {
        "attention_blocks.0.to_q": "attention_blocks.0.processor.to_q_lora",
        "attention_blocks.0.to_out.0": "attention_blocks.0.to_out.processor.0_lora",
        "ff.net.0.proj": "ff.net.0.processor.proj_lora",
        "ff.net.2": "ff.net.processor.2_lora",
    }.items():
        rows, columns = motion.get_parameter(f"{block}.{layer}.weight").shape
        tensors[f"{block}.{spelled}.up.weight"] = torch.randn(rows, 2)
        tensors[f"{block}.{spelled}.down.weight"] = torch.randn(2, columns)
    save_file(tensors, tmp_path / "l.safetensors")
    assert apply_motion_lora(motion, tmp_path / "l.safetensors", 1.0) == 4
