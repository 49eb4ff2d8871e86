"""Diffusers folders opened: configurations that make no sense, weights that do not fit, no code."""

import json
import shutil
import time

import pytest
import torch
from conftest import new_unet, weight_pairs
from small_model import LEVELS, write_half, write_model

from animatediff_core.checkpoints.diffusers_folder import load_folder, open_vae
from animatediff_core.checkpoints.loading import load_base
from animatediff_core.errors import CheckpointError


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts") / "model"
    write_model(folder)
    return folder


@pytest.fixture
def model(whole, tmp_path):
    """A copy to damage."""
    return shutil.copytree(whole, tmp_path / "model")


def change(path, content):
    """Replace a JSON file, or some of its settings."""
    if isinstance(content, dict):
        content = json.dumps(json.loads(path.read_text()) | content).encode()
    path.write_bytes(content)


SANE = "where a sane size or a list is needed"
LACK = "that its config.json describes: it lacks"
SHAPE = "of another shape"
SENSELESS = {
    "not JSON": ("unet", b"layers", "is no JSON"),
    "a list": ("unet", b"[]", "no object of named settings"),
    "layers": ("unet", {"layers_per_block": 10_000_000}, SANE),
    "many layers": ("unet", {"layers_per_block": 500}, "describes 2000 blocks"),
    "many transformers": ("unet", {"transformer_layers_per_block": [300] * 4}, "blocks"),
    "a layer more": ("unet", {"layers_per_block": 2}, LACK),
    "channels": ("unet", {"block_out_channels": [10**12] * 4}, SANE),
    "millions": ("unet", {"block_out_channels": [32_000, 640_000, 640_000, 32_000]}, SHAPE),
    "many levels": ("unet", {"block_out_channels": [32] * 100_000}, SANE),
    "text": ("unet", {"block_out_channels": "32"}, SANE),
    "nothing": ("unet", {"block_out_channels": None}, SANE),
    "a fraction": ("unet", {"block_out_channels": [32.5, 64]}, SANE),
    "a truth": ("unet", {"layers_per_block": True}, SANE),
    "negative": ("unet", {"layers_per_block": -1}, SANE),
    "text width": ("unet", {"cross_attention_dim": 768}, SHAPE),
    "no groups": ("unet", {"norm_num_groups": 0}, SANE),
    "groups": ("unet", {"norm_num_groups": 7}, "cannot be opened"),
    "unknown blocks": ("unet", {"down_block_types": ["Evil"] * 4}, "cannot be opened"),
    "heads": ("unet", {"attention_head_dim": "many"}, SANE),
    "class": ("unet", {"_class_name": "UNet3DConditionModel"}, "is for a UNet3DConditionModel"),
    "quantised": ("unet", {"quantization_config": {"quant_method": "x"}}, "a quantised model"),
    "vae levels": ("vae", {"block_out_channels": [8] * 30}, LACK),
    "vae without levels": ("vae", {"block_out_channels": {}}, SANE),
    "vae class": ("vae", {"_class_name": "AutoencoderTiny"}, "is for a AutoencoderTiny"),
    "vae channels": ("vae", {"latent_channels": 16}, SHAPE),
    "text layers": ("text_encoder", {"num_hidden_layers": 10**9}, SANE),
    "more text layers": ("text_encoder", {"num_hidden_layers": 100_000}, "more layers than"),
    "text layer": ("text_encoder", {"num_hidden_layers": 2}, LACK),
    "vocabulary": ("text_encoder", {"vocab_size": 1_000_000}, SHAPE),
    "positions": ("text_encoder", {"max_position_embeddings": 10**15}, SANE),
    "text heads": ("text_encoder", {"num_attention_heads": 3}, "cannot be opened|have"),
    "activation": ("text_encoder", {"hidden_act": "evil"}, "cannot be opened"),
    "kind": ("text_encoder", {"model_type": "llama"}, "is for a llama"),
}


@pytest.mark.parametrize("name", SENSELESS)
def test_a_senseless_configuration_ends_in_one_sentence_before_anything_is_built(model, name):
    part, content, message = SENSELESS[name]
    change(model / part / "config.json", content)
    start = time.process_time()
    with pytest.raises(CheckpointError) as told:
        load_base(str(model))
    assert time.process_time() - start < 3
    assert any(one in str(told.value) for one in message.split("|")), told.value
    assert str(told.value).isprintable()
    assert str(model / part) in str(told.value)


OTHERS = {
    "index": ("model_index.json", b"{", "is no JSON"),
    "schedule": ("scheduler/scheduler_config.json", b"[1]", "no object"),
    "prediction": ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "are known"),
    "betas": ("scheduler/scheduler_config.json", {"beta_end": "high"}, "which is no noise"),
    "tokenizer": ("tokenizer/tokenizer.json", b"{", "tokenizer: cannot be opened"),
    "large tokenizer": ("tokenizer/tokenizer.json", b" " * (17 << 20), "too large for a token"),
    "weights": ("vae/diffusion_pytorch_model.safetensors", b"x", "truncated or damaged"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_other_files_of_a_folder_are_checked_too(model, name):
    file, content, message = OTHERS[name]
    change(model / file, content)
    with pytest.raises(CheckpointError, match=message):
        load_base(str(model))


def test_a_folder_is_checked_from_its_headers(model):
    def load():
        with torch.device("meta"):
            return load_folder(model, "m", None, None)

    base = load()
    assert (base.unet.config.block_out_channels, base.vae_scale_factor) == ([*LEVELS], 2)
    assert {weight.device.type for weight in base.unet.parameters()} == {"meta"}
    change(model / "vae" / "config.json", {"block_out_channels": [8] * 3})
    with pytest.raises(CheckpointError, match=LACK):
        load()
    change(model / "unet" / "config.json", {"layers_per_block": 10**9})
    with pytest.raises(CheckpointError, match=SANE):
        load()
    shutil.rmtree(model / "vae")
    with pytest.raises(CheckpointError, match="m: is no diffusers folder, it has no vae/"):
        load()


def test_nothing_that_a_folder_names_is_run(model, tmp_path, monkeypatch):
    """Settings by which the libraries would import code from the folder or fetch kernels."""
    monkeypatch.chdir(tmp_path)
    evil = f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n"
    for part in ("unet", "text_encoder", "tokenizer"):
        (model / part / "evil.py").write_text(evil)
    code = {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil", "AutoTokenizer": ["evil.Evil"] * 2}
    change(model / "unet" / "config.json", {"auto_map": code})
    kernel = {"auto_map": code, "_attn_implementation": "org/kernel", "custom_pipelines": "evil",
              "attn_implementation": "org/kernel", "quantization_config": {"x": 1}}  # fmt: skip
    change(model / "text_encoder" / "config.json", kernel)
    change(model / "tokenizer" / "tokenizer_config.json", {"auto_map": code})
    base = load_base(str(model))
    assert type(base.text_encoders[0]).__name__ == "CLIPTextModel"
    assert base.text_encoders[0].config._attn_implementation in ("sdpa", "eager")
    assert not (tmp_path / "ran").exists()


def test_an_index_may_only_name_shards_beside_it(model):
    shutil.rmtree(model / "unet")
    new_unet(LEVELS).save_pretrained(model / "unet", max_shard_size="1MB")
    index = model / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    first = sorted(model.glob("unet/*-of-*"))[0]
    first.rename(first.with_suffix(".gone"))
    with pytest.raises(CheckpointError, match=f"names {first.name}, which is not beside it"):
        load_base(str(model))
    for content in ({"weight_map": {"a": "../vae/diffusion_pytorch_model.safetensors"}},
                    {"weight_map": {"a": "/etc/passwd"}}, {"weight_map": {"a": 1}},
                    {"weight_map": []}):  # fmt: skip
        change(index, content)
        with pytest.raises(CheckpointError, match="which is not beside it|has no weight_map"):
            load_base(str(model))


def test_a_local_variant_is_opened_and_nothing_else_needed(model):
    for part in ("unet", "vae", "text_encoder"):
        write_half(model / part)
    unet = load_base(str(model), variant="fp16").unet
    half = new_unet(LEVELS).half().state_dict()
    assert all(torch.equal(t, half[k].float()) for k, t in unet.state_dict().items())
    (model / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="unet/ has only weights of variant fp16; ask for"):
        load_base(str(model))
    assert load_base(str(model), variant="fp16").unet is not None


def test_a_vae_folder_of_old_attention_names_fits(model):
    """As Stable Diffusion's first folders have them."""
    vae = open_vae(model / "vae")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for key, tensor in vae.state_dict().items():
        for new, name in old.items():
            key = key.replace(f".{new}.", f".{name}.")
        tensors[key] = tensor
    (model / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(tensors, model / "vae" / "diffusion_pytorch_model.bin")
    again = open_vae(model / "vae")
    assert all(torch.equal(a, b) for _, a, b in weight_pairs(vae, again))


def test_links_that_lead_nowhere_are_named(model):
    (model / "unet" / "config.json").unlink()
    (model / "unet" / "config.json").symlink_to("nowhere.json")
    with pytest.raises(CheckpointError, match="lacks unet/config.json"):
        load_base(str(model))
