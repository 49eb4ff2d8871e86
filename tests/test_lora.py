"""LoRA dialects: each changes exactly its layers, by scale * alpha / rank * up @ down."""

import pytest
import torch
from conftest import new_motion, new_unet
from safetensors.torch import save_file

from animatediff_core import apply_lora, apply_motion_lora, save_motion_module
from animatediff_core.checkpoints.identify import identify
from animatediff_core.errors import CheckpointError

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"


def matrices(size: int = 32, rank: int = 2):
    generator = torch.Generator().manual_seed(3)
    down = torch.randn(rank, size, generator=generator)
    return torch.randn(size, rank, generator=generator), down


def dialect(name: str):
    """Tensors of a one-layer file, the changed layer, and alpha / rank."""
    up, down = matrices()
    flat = LAYER.replace(".", "_")
    files = {
        "kohya": (
            {f"lora_unet_{flat}_to_q.lora_up.weight": up,
             f"lora_unet_{flat}_to_q.lora_down.weight": down,
             f"lora_unet_{flat}_to_q.alpha": torch.tensor(1.0)}, "to_q", 0.5),
        "kohya out": (
            {f"lora_unet_{flat}_to_out_0.lora_up.weight": up,
             f"lora_unet_{flat}_to_out_0.lora_down.weight": down}, "to_out.0", 1.0),
        "peft": (
            {f"unet.{LAYER}.to_k.lora_B.weight": up, f"unet.{LAYER}.to_k.lora_A.weight": down},
            "to_k", 1.0),
        "diffusers": (
            {f"unet.{LAYER}.to_out.0.lora.up.weight": up,
             f"unet.{LAYER}.to_out.0.lora.down.weight": down}, "to_out.0", 1.0),
        "official adapter": (
            {f"{LAYER}.processor.to_out_lora.up.weight": up,
             f"{LAYER}.processor.to_out_lora.down.weight": down}, "to_out.0", 1.0),
    }  # fmt: skip
    return files[name]


@pytest.mark.parametrize("name", ["kohya", "kohya out", "peft", "diffusers", "official adapter"])
def test_every_dialect_changes_its_layer_by_the_product(tmp_path, name):
    tensors, layer, factor = dialect(name)
    save_file(tensors, tmp_path / "l.safetensors")
    unet, plain = new_unet(), new_unet()
    assert apply_lora(unet, tmp_path / "l.safetensors", 0.7) == 1
    up, down = matrices()
    for key, weight in unet.state_dict().items():
        before = plain.state_dict()[key]
        if key == f"{LAYER}.{layer}.weight":
            assert torch.allclose(weight, before + 0.7 * factor * up @ down, atol=1e-5)
        else:
            assert torch.equal(weight, before), key


CONV = "down_blocks.0.resnets.0.conv1"


def lycoris(form: str):
    """Tensors of one 3 x 3 convolution, and its change by the paper's formula (2309.14859)."""
    torch.manual_seed(5)
    o, i, r = 32, 32, 4
    name = f"lycoris_unet_{CONV.replace('.', '_')}"
    a, b, c, d = torch.randn(o, r), torch.randn(r, i * 9), torch.randn(o, r), torch.randn(r, i * 9)
    small, large = torch.randn(4, 4), torch.randn(o // 4, i // 4, 3, 3)
    core, down, up = torch.randn(r, r, 3, 3), torch.randn(r, i, 1, 1), torch.randn(o, r, 1, 1)
    files = {
        "LoHa": ({"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d,
                  "alpha": torch.tensor(2.0)}, 0.5 * (a @ b) * (c @ d)),
        "LoKr": ({"lokr_w1": small, "lokr_w2": large, "alpha": torch.tensor(9.0)},
                 torch.stack([torch.kron(small, large[:, :, k, m]) for k in range(3)
                              for m in range(3)], -1).flatten(1)),
        "LoCon": ({"lora_up.weight": up, "lora_mid.weight": core, "lora_down.weight": down},
                  torch.einsum("or,rskl,si->oikl", up[..., 0, 0], core, down[..., 0, 0])),
        "difference": ({"diff": large.repeat(4, 4, 1, 1)}, large.repeat(4, 4, 1, 1)),
    }  # fmt: skip
    tensors, change = files[form]
    return {f"{name}.{key}": tensor for key, tensor in tensors.items()}, change


@pytest.mark.parametrize("form", ["LoHa", "LoKr", "LoCon", "difference"])
def test_lycoris_forms_change_a_convolution_by_their_formula(tmp_path, form):
    tensors, change = lycoris(form)
    save_file(tensors, tmp_path / "l.safetensors")
    unet = new_unet()
    assert apply_lora(unet, tmp_path / "l.safetensors", -0.3) == 1
    weight, before = (m.state_dict()[f"{CONV}.weight"] for m in (unet, new_unet()))
    assert torch.allclose(weight, before - 0.3 * change.view_as(before), atol=1e-5)
    if form != "difference":
        assert form in identify(tmp_path / "l.safetensors").details.get("form", "")


def test_a_layer_without_all_its_parts_is_named(tmp_path):
    tensors, _ = lycoris("LoHa")
    del tensors[next(key for key in tensors if key.endswith("hada_w2_a"))]
    save_file(tensors, tmp_path / "l.safetensors")
    with pytest.raises(CheckpointError, match="conv1 lacks its part hada_w2_a"):
        apply_lora(new_unet(), tmp_path / "l.safetensors", 1.0)


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


def test_what_is_no_lora_is_told_where_it_goes(tmp_path):
    motion = new_motion()
    save_file(motion_lora(motion), tmp_path / "motion_lora.safetensors")
    save_motion_module(motion, tmp_path / "module.safetensors")
    save_file(dialect("kohya")[0], tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match=r"MotionLoRA, which goes into motion_loras"):
        apply_lora(new_unet(), tmp_path / "motion_lora.safetensors", 1.0)
    with pytest.raises(CheckpointError, match=r"motion module, which goes into motion \("):
        apply_lora(new_unet(), tmp_path / "module.safetensors", 1.0)
    with pytest.raises(CheckpointError, match=r"LoRA for the image model, which goes into loras"):
        apply_motion_lora(motion, tmp_path / "lora.safetensors", 1.0)


def test_a_lora_of_another_family_changes_nothing_and_names_a_layer(tmp_path):
    up, down = matrices(48)
    save_file(
        {f"unet.{LAYER}.to_k.lora_B.weight": up, f"unet.{LAYER}.to_k.lora_A.weight": down},
        tmp_path / "wide.safetensors",
    )
    save_file(
        {"unet.elsewhere.to_k.lora_B.weight": up, "unet.elsewhere.to_k.lora_A.weight": down},
        tmp_path / "lost.safetensors",
    )
    unet = new_unet()
    with pytest.raises(CheckpointError, match="another family"):
        apply_lora(unet, tmp_path / "wide.safetensors", 1.0)
    with pytest.raises(CheckpointError, match="elsewhere_to_k"):
        apply_lora(unet, tmp_path / "lost.safetensors", 1.0)
    assert all(torch.equal(t, new_unet().state_dict()[k]) for k, t in unet.state_dict().items())


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
