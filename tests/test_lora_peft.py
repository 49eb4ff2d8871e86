"""PEFT's LoRAs: alpha and rank beside the tensors, by patterns, in folders of their own."""

import json

import pytest
import torch
from conftest import new_unet
from safetensors.torch import save_file

from animatediff_core import apply_lora
from animatediff_core.adapters.identify import identify
from animatediff_core.adapters.lora.peft import lora_files
from animatediff_core.errors import CheckpointError

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
FORMS = {
    "LoRA": {"lora_A.weight": (2, 32), "lora_B.weight": (32, 2)},  # ones: 2
    "LoHa": {"hada_w1_a": (32, 2), "hada_w1_b": (2, 32), "hada_w2_a": (32, 2),
             "hada_w2_b": (2, 32)},  # 4
    "LoKr": {"lokr_w1": (4, 4), "lokr_w2_a": (8, 2), "lokr_w2_b": (2, 8)},  # 2
    "whole LoKr": {"lokr_w1": (4, 4), "lokr_w2": (8, 8)},  # 1
}  # fmt: skip


def folder_of(path, form, settings, prefix="base_model.model."):
    tensors = {f"{prefix}{LAYER}.{k}": torch.ones(shape) for k, shape in FORMS[form].items()}
    path.mkdir()
    save_file(tensors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps(settings))
    return path


def change(path, layer=LAYER):
    """The one value that every weight of a layer changes by."""
    unet, plain = new_unet(), new_unet()
    assert apply_lora(unet, path) == 1
    difference = unet.state_dict()[f"{layer}.weight"] - plain.state_dict()[f"{layer}.weight"]
    assert difference.std() < 1e-6
    return float(difference.mean())


@pytest.mark.parametrize(
    ("form", "settings", "expected"),
    [
        ("LoRA", {"lora_alpha": 6, "r": 2}, 6.0),
        ("LoHa", {"alpha": 1, "r": 2}, 2.0),
        ("LoKr", {"alpha": 1, "r": 2}, 1.0),
        ("whole LoKr", {"alpha": 1, "r": 4}, 0.25),
        ("whole LoKr", {"alpha": 1, "r": 4, "rank_pattern": {"to_q": 8}}, 0.125),
        ("LoHa", {"alpha": 1, "r": 9, "rank_pattern": {"attn1.to_q": 2}}, 2.0),
        ("LoRA", {"lora_alpha": 2, "alpha_pattern": {"to_q": 16}}, 16.0),
        ("LoRA", {"lora_alpha": 2, "alpha_pattern": {"attn1.to_q": 16, "to_q": 4}}, 16.0),
        ("LoRA", {"lora_alpha": 2, "alpha_pattern": {r"down_blocks\.\d+\.att.*\.to_q": 16}}, 16.0),
        ("LoRA", {"lora_alpha": 2, "alpha_pattern": {f"^{LAYER}": 16}}, 16.0),
        ("LoRA", {"lora_alpha": 2, "alpha_pattern": {"q": 16, "o_q": 4, "attn1": 9}}, 2.0),
        ("LoRA", {"lora_alpha": 2, "use_rslora": True}, 2.0 * 2**0.5),
    ],
)
def test_alpha_and_rank_are_those_of_pefts_settings(tmp_path, form, settings, expected):
    assert change(folder_of(tmp_path / "l", form, settings)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("pattern", ["(", "(a+)+b", ".*" * 9])
def test_a_pattern_that_cannot_be_used_is_named(tmp_path, pattern):
    folder = folder_of(tmp_path / "l", "LoRA", {"lora_alpha": 1, "alpha_pattern": {pattern: 2}})
    with pytest.raises(CheckpointError, match="its pattern .* cannot be used"):
        apply_lora(new_unet(), folder)


@pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "adapter_model.bin"])
def test_a_folder_is_read_as_the_file_in_it(tmp_path, name):
    folder = folder_of(tmp_path / "l", "LoRA", {"lora_alpha": 6}, prefix="unet.")
    file = folder / "adapter_model.safetensors"
    if name.endswith(".bin"):
        pairs = FORMS["LoRA"].items()
        torch.save({f"{LAYER}.{key}": torch.ones(shape) for key, shape in pairs}, folder / name)
        file.unlink()
    else:
        file.rename(folder / name)
    assert change(folder) == (6.0 if name.endswith(".bin") else 2.0)
    assert identify(folder).path == folder / name
    settings = [folder / "adapter_config.json"] if name.endswith(".bin") else []
    assert lora_files(folder) == [folder / name, *settings]
