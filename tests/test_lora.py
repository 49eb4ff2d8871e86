"""LoRA dialects: each changes exactly its layers, by scale * alpha / rank * up @ down."""

from types import SimpleNamespace

import pytest
import torch
from conftest import new_motion, new_unet, weight_pairs
from safetensors.torch import save_file
from test_motion_lora import motion_lora

from animatediff_core import apply_lora, apply_motion_lora, save_motion_module
from animatediff_core.adapters.identify import identify
from animatediff_core.checkpoints.loading import load_base
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
        "default_0": (
            {f"{LAYER}.to_q.lora_B.default_0.weight": up,
             f"{LAYER}.to_q.lora_A.default_0.weight": down}, "to_q", 1.0),
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


@pytest.mark.parametrize(
    "name", ["default_0", "kohya", "kohya out", "peft", "diffusers", "official adapter"]
)
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


def test_what_is_no_lora_is_told_where_it_goes(tmp_path):
    motion = new_motion()
    save_file(motion_lora(motion), tmp_path / "motion_lora.safetensors")
    save_motion_module(motion, tmp_path / "module.safetensors")
    save_file(dialect("kohya")[0], tmp_path / "lora.safetensors")
    goes = r"MotionLoRA, which goes into motion_loras \(--motion-lora\), not into loras"
    with pytest.raises(CheckpointError, match=goes):
        apply_lora(new_unet(), tmp_path / "motion_lora.safetensors", 1.0)
    with pytest.raises(CheckpointError, match="is no LoRA for the image model"):
        apply_lora(new_unet(), tmp_path / "module.safetensors", 1.0)
    goes = r"is a LoRA, which goes into loras \(--lora\), not into motion_loras"
    with pytest.raises(CheckpointError, match=goes):
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
    plain = new_unet().state_dict()
    assert all(torch.equal(t, plain[k]) for k, t in unet.state_dict().items())


def test_several_loras_add_up_in_any_order_and_come_off_again(tmp_path):
    files = []
    for number, name in enumerate(("kohya", "peft", "diffusers", "official adapter")):
        tensors, _, _ = dialect(name)
        save_file(
            {k: t * (number + 1) for k, t in tensors.items()}, tmp_path / f"{number}.safetensors"
        )
        files.append((tmp_path / f"{number}.safetensors", (0.7, -1.2, 0.4, 2.0)[number]))
    one, other, plain = new_unet(), new_unet(), new_unet()
    for path, scale in files:
        apply_lora(one, path, scale)
    for path, scale in reversed(files):
        apply_lora(other, path, scale)
    assert all(torch.allclose(a, b, atol=1e-4) for _, a, b in weight_pairs(one, other))
    for path, scale in files:
        apply_lora(one, path, -scale)
    assert all(torch.allclose(a, b, atol=1e-4) for _, a, b in weight_pairs(one, plain))


def test_scale_zero_checks_the_file_and_leaves_every_bit(tmp_path):
    save_file(dialect("kohya")[0], tmp_path / "l.safetensors")
    unet = new_unet()
    assert apply_lora(unet, tmp_path / "l.safetensors", 0.0) == 1
    plain = new_unet().state_dict()
    assert all(torch.equal(t, plain[k]) for k, t in unet.state_dict().items())


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: {k: torch.zeros_like(v) if "up" in k else v for k, v in t.items()},
         "changes nothing, its 1 layers are all zero"),
        (lambda t: {k: v * float("nan") if "up" in k else v for k, v in t.items()},
         "holds values that are no numbers"),
        (lambda t: {k: torch.ones(3) if "alpha" in k else v for k, v in t.items()},
         "alpha is no number"),
        (lambda t: {**t, "lora_unet_mid_block_attentions_0_proj_in.other": torch.ones(2)},
         "1 of 4 tensors are of no LoRA kind that is known, first lora_unet_mid_block"),
        (lambda t: {**t, **{k.replace("attn1", "attn7"): v for k, v in t.items()}},
         "1 of its 2 layers match nothing in this model, first down_blocks_0_attentions_0_"),
        (lambda t: {**t, **{f"unet.{LAYER}.to_q.lora_{x}.weight": torch.ones(2, 32) for x in "AB"}},
         "down twice"),
        (lambda t: {**t, **{k.replace("lora_unet_", "lora_te_"): v for k, v in t.items()}},
         "changes the text encoder too, which a UNet alone lacks"),
    ],
)  # fmt: skip
def test_a_lora_that_cannot_be_applied_whole_is_not_applied(tmp_path, edit, message):
    tensors = {k: t.clone() for k, t in edit(dialect("kohya")[0]).items()}
    save_file(tensors, tmp_path / "l.safetensors")
    unet = new_unet()
    with pytest.raises(CheckpointError, match=message):
        apply_lora(unet, tmp_path / "l.safetensors", 1.0)
    plain = new_unet().state_dict()
    assert all(torch.equal(t, plain[k]) for k, t in unet.state_dict().items())


def reads_text(width: int, form: str):
    """One layer that reads text of a family's width, in different forms."""
    name = f"lora_unet_{LAYER.replace('.', '_').replace('attn1', 'attn2')}_to_k"
    forms = {
        "LoRA": {"lora_down.weight": torch.ones(2, width), "lora_up.weight": torch.ones(32, 2)},
        "LoHa": {f"hada_w{n}_{x}": torch.ones(*((32, 2) if x == "a" else (2, width)))
                 for n in (1, 2) for x in "ab"},
        "LoKr": {"lokr_w1": torch.ones(4, 4), "lokr_w2_a": torch.ones(8, 2),
                 "lokr_w2_b": torch.ones(2, width // 4)},
        "difference": {"diff": torch.ones(32, width)},
    }  # fmt: skip
    return {f"{name}.{key}": tensor for key, tensor in forms[form].items()}


@pytest.mark.parametrize("form", ["LoRA", "LoHa", "LoKr", "difference"])
@pytest.mark.parametrize(("width", "family"), [(768, "SD1.5"), (1024, "SD2"), (2048, "SDXL")])
def test_a_lora_of_another_family_is_refused_with_both_names(tmp_path, width, family, form):
    save_file(reads_text(width, form), tmp_path / "l.safetensors")
    report = identify(tmp_path / "l.safetensors")
    assert (report.kind, report.family) == ("LoRA", family)
    families = f"is a LoRA for {family} but the base model is UNet 32-64"
    with pytest.raises(CheckpointError, match=families):
        apply_lora(new_unet(), tmp_path / "l.safetensors", 1.0)


@pytest.mark.parametrize(
    ("metadata", "family"),
    [
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "SDXL"),
        ({"ss_base_model_version": "sd_v2_v"}, "SD2"),
        ({"ss_base_model_version": "sd_v1"}, "SD1.5"),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "SDXL"),
        ({"modelspec.architecture": "flux-1-dev/lora"}, "flux-1-dev/lora"),
    ],
)
def test_the_trainers_word_for_the_family_counts_where_shapes_do_not_tell(
    tmp_path, metadata, family
):
    save_file(dialect("kohya")[0], tmp_path / "l.safetensors", metadata=metadata)
    assert identify(tmp_path / "l.safetensors").family == family
    with pytest.raises(CheckpointError, match=f"for {family} but the base model is"):
        apply_lora(new_unet(), tmp_path / "l.safetensors", 1.0)


def test_a_trainers_unknown_word_for_the_family_does_not_count(tmp_path):
    noted = {"ss_base_model_version": "my own mix"}
    save_file(dialect("kohya")[0], tmp_path / "l.safetensors", metadata=noted)
    assert identify(tmp_path / "l.safetensors").family == "unknown"
    assert apply_lora(new_unet(), tmp_path / "l.safetensors", 1.0) == 1


def test_names_of_the_original_code_reach_the_models_layers(tmp_path):
    up, down = matrices()
    name = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    save_file({f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down},
              tmp_path / "l.safetensors")  # fmt: skip
    unet = new_unet()
    assert apply_lora(unet, tmp_path / "l.safetensors", 1.0) == 1
    key = f"{LAYER}.to_q.weight"
    assert torch.allclose(
        unet.state_dict()[key], new_unet().state_dict()[key] + up @ down, atol=1e-5
    )


def test_a_projection_that_no_frame_depends_on_is_left_out_and_said(tmp_path, caplog):
    extra = {f"lora_te1_text_projection.lora_{name}.weight": torch.ones(2, 2)
             for name in ("up", "down")}  # fmt: skip
    save_file(dialect("kohya")[0] | extra, tmp_path / "l.safetensors")
    pipeline = SimpleNamespace(unet=new_unet(), text_encoders=[])
    assert apply_lora(pipeline, tmp_path / "l.safetensors") == 1
    assert "the projection of the first text encoder is left out" in caplog.text


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("oft_R.weight", "is a LoRA that cannot be used: PEFT's OFT is not supported"),
        ("ia3_l", "PEFT's IA3 is not supported; kohya, LyCORIS"),
        ("lora_E", "AdaLoRA is not supported"),
        ("lora_B.bias", "1 of 1 tensors are of no LoRA kind that is known, first base_model"),
        ("lora_Z.weight", "1 of 1 tensors are of no LoRA kind that is known, first base_model"),
    ],
)
def test_a_form_that_is_not_read_is_named_by_inspect_and_loader(tmp_path, key, message):
    save_file(
        {f"base_model.model.{LAYER}.to_q.{key}": torch.ones(2, 2)}, tmp_path / "l.safetensors"
    )
    report = identify(tmp_path / "l.safetensors")
    assert (report.kind, report.goes_in) == ("LoRA", "nowhere")
    with pytest.raises(CheckpointError, match=message):
        apply_lora(new_unet(), tmp_path / "l.safetensors")


def test_a_name_that_other_models_have_too_makes_no_lora(tmp_path):
    save_file({"body.0.a1.weight": torch.ones(2, 2)}, tmp_path / "l.safetensors")
    assert identify(tmp_path / "l.safetensors").kind != "LoRA"


def test_text_encoder_layers_of_every_dialect_are_changed(tmp_path):
    names = {
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_{}.weight": ("up", "down"),
        "lora_te1_text_model_encoder_layers_0_self_attn_k_proj.lora_{}.weight": ("up", "down"),
        "text_encoder.text_model.encoder.layers.0.self_attn.to_v_lora.{}.weight": ("up", "down"),
        "text_encoder.text_model.encoder.layers.0.self_attn.out_proj.lora_{}.weight": ("B", "A"),
        "text_encoder.text_model.encoder.layers.1.self_attn.q_proj.lora_linear_layer.{}.weight":
            ("up", "down"),
    }  # fmt: skip
    up, down = matrices(128)
    tensors = {n.format(k): m.clone() for n, kinds in names.items()
               for k, m in zip(kinds, (up, down), strict=True)}  # fmt: skip
    save_file(tensors, tmp_path / "l.safetensors")
    base, plain = load_base("bundled:tiny"), load_base("bundled:tiny")
    assert apply_lora(base, tmp_path / "l.safetensors", 0.5) == 5
    before = plain.text_encoders[0].state_dict()
    changed = [k for k, t in base.text_encoders[0].state_dict().items() if t.shape == (128, 128)
               and torch.allclose(t, before[k] + 0.5 * up @ down, atol=1e-3)]  # fmt: skip
    assert len(changed) == 5
