"""Recognisers: one answer for `inspect`, planning and loaders, from names and shapes alone."""

import json
from pathlib import Path

import pytest
import torch
from conftest import new_unet
from diffusers.models import ControlNetModel
from safetensors.torch import save_file
from test_ip_adapter import weights as ip_adapter_weights

from animatediff_core import apply_lora
from animatediff_core.adapters.controlnet import load_controlnet
from animatediff_core.adapters.identify import identify
from animatediff_core.adapters.ip_adapter import attach_ip_adapters, read_ip_adapter
from animatediff_core.adapters.t2i_adapter import load_t2i_adapter
from animatediff_core.adapters.textual_inversion import read_embedding
from animatediff_core.checkpoints.families import text_width
from animatediff_core.checkpoints.file_report import FileReport, require, wrong_family
from animatediff_core.errors import CheckpointError
from animatediff_core.weights.weight_file import open_model


def report(kind: str, goes_in: str, **others: object) -> FileReport:
    return FileReport(path=Path("x.pt"), kind=kind, goes_in=goes_in, **others)


SENTENCES = {
    "an option": (
        report("MotionLoRA", "motion_loras"), "loras",
        "a.pt: is a MotionLoRA, which goes into motion_loras (--motion-lora), not into loras",
    ),
    "no option": (
        report("IP-Adapter", "ip_adapters"), "controlnets",
        "a.pt: is an IP-Adapter, which goes into ip_adapters, not into controlnets",
    ),
    "nowhere": (
        report("ControlNet", "nowhere", details={"note": "it is a part"}), "controlnets",
        "a.pt: is a ControlNet that cannot be used: it is a part",
    ),
    "unknown": (
        report("no known kind", "nowhere", details={"note": "its tensors (x) are of no kind"}),
        "t2i_adapters",
        "a.pt: is no T2I-Adapter, which t2i_adapters takes: its tensors (x) are of no kind",
    ),
    "none": (None, "base", "a.pt: is no base model; `animatediff inspect` says what it is"),
}  # fmt: skip


@pytest.mark.parametrize("name", SENTENCES)
def test_one_sentence_says_what_a_file_is_instead(name):
    found, key, sentence = SENTENCES[name]
    with pytest.raises(CheckpointError) as error:
        require(found, key, "a.pt")
    assert str(error.value) == sentence


def test_one_sentence_says_that_the_family_is_another():
    error = wrong_family(report("embedding", "embeddings", family="SD2"), "SDXL", "e.pt", "m")
    assert str(error) == (
        "e.pt: is an embedding for SD2 but m is SDXL; use one of the base model's family"
    )


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", 5),
        ("middle_block.1.transformer_blocks.0.attn2.to_k.weight", 5),
        ("middle_block1transformer_blocks0attn2to_kweight", 5),  # averaged weights have no dots
        ("mid_block.attentions.0.transformer_blocks.0.attn1.to_k.weight", 0),
        ("mid_block.attentions.0.transformer_blocks.0.attn2.to_q.weight", 0),
    ],
)
def test_the_text_width_is_read_from_keys_of_the_cross_attention(name, width):
    assert text_width({name: (7, 5), "attn2.to_k.bias": (9,)}) == width


def controlnet(folder: Path, *, shards: int = 1) -> Path:
    torch.manual_seed(2)
    model = ControlNetModel.from_unet(
        new_unet(), conditioning_embedding_out_channels=(8, 16), load_weights_from_unet=False
    )
    model.save_pretrained(folder, max_shard_size="100KB" if shards > 1 else "10GB")
    return folder


def test_a_folder_in_several_files_is_recognised_and_loaded_whole(tmp_path):
    folder = controlnet(tmp_path / "c", shards=2)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 1
    found = identify(folder)
    assert (found.kind, found.family, found.goes_in) == (
        "ControlNet", "UNet 32-64", "controlnets",
    )  # fmt: skip
    model = load_controlnet(folder, new_unet())
    assert found.parameters == sum(p.numel() for p in model.parameters())
    whole = load_controlnet(controlnet(tmp_path / "w"), new_unet()).state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in model.state_dict().items())
    assert open_model(folder).config["_class_name"] == "ControlNetModel"
    twice = {name: torch.zeros(1) for name in open_model(files[1]).shapes}
    save_file(twice | {"x": torch.zeros(1)}, files[0])
    with pytest.raises(CheckpointError, match="two files hold"):
        open_model(folder)


def test_a_folder_whose_configuration_is_of_another_kind_is_named(tmp_path):
    folder = controlnet(tmp_path / "c")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "_class_name": "T2IAdapter"}))
    with pytest.raises(CheckpointError, match="says T2IAdapter but its weights are of a Control"):
        identify(folder)


LOADERS = {
    "loras": lambda path: apply_lora(new_unet(), path),
    "controlnets": lambda path: load_controlnet(path, new_unet()),
    "t2i_adapters": lambda path: load_t2i_adapter(path, new_unet(), 8),
    "ip_adapters": read_ip_adapter,
    "embeddings": read_embedding,
}
LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
FILES = {
    "loras": {f"{LAYER}.lora_up.weight": (32, 2), f"{LAYER}.lora_down.weight": (2, 32)},
    "controlnets": {"zero_convs.0.0.weight": (8, 8, 1, 1)},
    "t2i_adapters": {"body.0.block1.weight": (8, 8, 3, 3)},
    "ip_adapters": {"image_proj.latents": (1, 4, 8), "ip_adapter.1.to_k_ip.weight": (8, 768)},
    "embeddings": {"<ball>": (2, 768)},
}


@pytest.mark.parametrize("key", FILES)
def test_a_file_is_of_one_kind_for_inspect_and_every_loader(tmp_path, key):
    path = tmp_path / "x.safetensors"
    save_file({name: torch.ones(shape) for name, shape in FILES[key].items()}, path)
    assert identify(path).goes_in == key
    for other, load in LOADERS.items():
        if other != key:
            with pytest.raises(CheckpointError, match=r"is no |, not into "):
                load(path)


FORMS = ["plain", "plus", "full face"]


@pytest.mark.parametrize("form", FORMS)
def test_every_tensor_of_an_ip_adapters_projection_is_needed_in_its_shape(tmp_path, form):
    parts = ip_adapter_weights(form)
    unet, path = new_unet(), tmp_path / "adapter.bin"
    whole = dict(parts["image_proj"])
    for name, tensor in whole.items():
        for changed in (None, torch.cat([tensor, tensor])):
            projection = {n: t for n, t in whole.items() if n != name}
            if changed is not None:
                projection[name] = changed
            torch.save({**parts, "image_proj": projection}, path)
            with pytest.raises(CheckpointError):
                attach_ip_adapters(unet, [(read_ip_adapter(path), 1.0)])


def test_an_error_of_the_library_stays_one_and_leaves_the_unet(tmp_path, monkeypatch):
    torch.save(ip_adapter_weights("plain"), tmp_path / "adapter.bin")
    unet, adapter = new_unet(), read_ip_adapter(tmp_path / "adapter.bin")
    before = unet.attn_processors

    def changed_interface(*arguments: object) -> None:
        raise TypeError("another interface")

    monkeypatch.setattr(unet, "_convert_ip_adapter_image_proj_to_diffusers", changed_interface)
    with pytest.raises(TypeError, match=r"another interface|unexpected keyword"):
        attach_ip_adapters(unet, [(adapter, 1.0)])
    assert unet.attn_processors == before
    assert unet.encoder_hid_proj is None
