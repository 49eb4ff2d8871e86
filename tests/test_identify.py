"""`inspect`: every kind of file is told by its names and shapes."""

import json

import numpy as np
import pytest
import torch
from conftest import TINY, new_motion, new_unet
from diffusers.models import (
    AutoencoderKL,
    ControlNetModel,
    SparseControlNetModel,
    T2IAdapter,
)
from safetensors.torch import load_file, save_file
from transformers.models.clip import CLIPTextConfig, CLIPTextModel
from typer.testing import CliRunner

from animatediff_core import load_motion_module, save_motion_module
from animatediff_core.adapters.identify import identify
from animatediff_core.errors import CheckpointError
from animatediff_core.jobs import Job, Output, dump_job
from animatediff_core.media.clip import write_clip
from animatediff_core.media.settings import MARK
from cli.app import app


def hollow(shapes, dtype=torch.float16):
    """Tensors of the shapes, of zeros: `inspect` reads no values."""
    return {key: torch.zeros(shape, dtype=dtype) for key, shape in shapes.items()}


def ip_adapter(image_proj, width=768):
    """The two dictionaries of a released .bin file; key table of diffusers' loaders/unet.py."""
    layers = {f"{n}.to_{kind}_ip.weight": torch.zeros(8, width) for n in (1, 3) for kind in "kv"}
    return {"image_proj": hollow(image_proj), "ip_adapter": layers}


IP_FORMS = {
    "plain": {"proj.weight": (8, 4), "norm.weight": (8,)},
    "plus": {"latents": (1, 4, 8), "proj_in.weight": (8, 4)},
    "full face": {"proj.0.weight": (4, 4), "proj.3.weight": (8,)},
    "face ID": {"proj.0.weight": (4, 4), "norm.weight": (8,)},
    "face ID plus": {"proj.0.weight": (4, 4), "perceiver_resampler.proj_in.weight": (4, 4)},
}


@pytest.mark.parametrize("form", IP_FORMS)
@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_every_form_of_ip_adapter_is_told(tmp_path, form, suffix):
    width, family = (2048, "SDXL") if form == "plus" else (768, "SD1.5")
    nested = ip_adapter(IP_FORMS[form], width)
    if form == "face ID":
        nested["ip_adapter"]["0.to_q_lora.down.weight"] = torch.zeros(2, 8)
    path = tmp_path / f"ip.{suffix}"
    if suffix == "bin":
        torch.save(nested, path)
    else:
        save_file({f"{k}.{n}": t for k, part in nested.items() for n, t in part.items()}, path)
    report = identify(path)
    assert (report.kind, report.family) == ("IP-Adapter", family)
    assert report.goes_in == ("nowhere" if "ID" in report.details["form"] else "ip_adapters")
    assert report.details["form"] == form


def small_vae():
    return AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip


def test_vae_files_of_both_layouts_are_told(tmp_path):
    small_vae().save_pretrained(tmp_path / "vae")
    report = identify(tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    assert (report.kind, report.goes_in, report.dtype) == ("VAE", "vae", "fp32")
    assert report.parameters == sum(p.numel() for p in small_vae().parameters())
    assert report.details == {"layout": "diffusers", "latents": "4 channels"}
    assert identify(tmp_path / "vae").kind == "VAE"
    names = {"encoder.down.0.block.0.norm1.weight": (4,), "decoder.conv_in.weight": (8, 4, 3, 3)}
    for prefix in ("", "first_stage_model."):
        save_file(hollow({prefix + k: s for k, s in names.items()}), tmp_path / "v.safetensors")
        report = identify(tmp_path / "v.safetensors")
        assert (report.kind, report.details["layout"]) == ("VAE", "original")


def test_parts_of_a_base_model_are_told(tmp_path):
    new_unet().save_pretrained(tmp_path / "unet")
    report = identify(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    assert (report.kind, report.family, report.goes_in) == ("UNet", "UNet 32-64", "unet")
    config = CLIPTextConfig(
        vocab_size=20, hidden_size=768, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=8,
    )  # fmt: skip
    CLIPTextModel(config).half().save_pretrained(tmp_path / "text")
    report = identify(tmp_path / "text" / "model.safetensors")
    assert (report.kind, report.dtype) == ("text encoder", "fp16")
    assert report.family.startswith("SD1.5")
    assert identify(tmp_path / "text").kind == "text encoder"


SMALL = {
    "block_out_channels": (8, 8), "cross_attention_dim": 768, "attention_head_dim": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "layers_per_block": 1,
    "norm_num_groups": 4,
}  # fmt: skip


def test_controlnets_and_t2i_adapters_are_told(tmp_path):
    ControlNetModel(**SMALL, conditioning_embedding_out_channels=(8, 8)).save_pretrained(
        tmp_path / "control"
    )
    report = identify(tmp_path / "control" / "diffusion_pytorch_model.safetensors")
    assert (report.kind, report.family) == ("ControlNet", "UNet 8-8")
    assert identify(tmp_path / "control").kind == "ControlNet"
    names = {"control_model.input_hint_block.0.weight": (8, 3, 3, 3),
             "control_model.zero_convs.0.0.weight": (8, 8, 1, 1)}  # fmt: skip
    save_file(hollow(names), tmp_path / "ldm.safetensors")
    assert identify(tmp_path / "ldm.safetensors").details == {"layout": "original"}
    T2IAdapter(channels=[8, 8, 8, 8]).save_pretrained(tmp_path / "t2i")
    assert identify(tmp_path / "t2i" / "diffusion_pytorch_model.safetensors").kind == "T2I-Adapter"
    save_file(hollow({"body.0.block1.weight": (8, 8, 3, 3)}), tmp_path / "t2i.safetensors")
    assert identify(tmp_path / "t2i.safetensors").details["layout"] == "original"


@pytest.mark.parametrize("reads", ["scribbles", "RGB"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_both_official_sparsectrl_files_are_no_motion_modules(tmp_path, reads, wrapped):
    down_blocks = ("CrossAttnDownBlockMotion", "DownBlockMotion")
    model = SparseControlNetModel(
        **{**SMALL, "down_block_types": down_blocks, "motion_num_attention_heads": 2,
           "motion_max_seq_length": 32, "use_simplified_condition_embedding": reads == "RGB"},
        conditioning_embedding_out_channels=(8, 8),
    )  # fmt: skip
    names = {}
    for key, tensor in model.state_dict().items():
        # the renames of diffusers' convert_animatediff_sparsectrl_to_diffusers.py, undone
        name = key.replace(".attn1.", ".attention_blocks.0.").replace(".norm3.", ".ff_norm.")
        name = name.replace("motion_modules.0.", "motion_modules.0.temporal_transformer.")
        names[f"module.{name}"] = tensor
    torch.save({"controlnet": names} if wrapped else names, tmp_path / "s.ckpt")
    report = identify(tmp_path / "s.ckpt")
    assert (report.kind, report.version, report.goes_in) == ("SparseCtrl", "v3", "sparse_controls")
    assert report.details["reads"].startswith(reads)
    with pytest.raises(CheckpointError, match="is not a motion module"):
        load_motion_module(tmp_path / "s.ckpt")


def test_a_motion_module_says_frames_norms_and_betas(tmp_path):
    motion = new_motion(max_frames=20, resnet_norm="clip")
    save_motion_module(motion, tmp_path / "m.safetensors")
    report = identify(tmp_path / "m.safetensors")
    assert (report.kind, report.version, report.goes_in) == ("motion module", "v2", "motion")
    said = report.details
    assert said["frames"] == "20 at most"
    assert said["ResNet norm"] == "over each clip"
    assert said["betas"] == "linear 0.00085 to 0.012"
    weights = load_file(tmp_path / "m.safetensors").values()
    assert report.parameters == sum(weight.numel() for weight in weights)


def test_without_positions_the_note_says_what_to_do(tmp_path):
    save_file(dict(new_motion(mid_block=True).state_dict()), tmp_path / "m.safetensors")
    note = identify(tmp_path / "m.safetensors").details["note"]
    assert "v2, lightning or animatelcm" in note
    assert "--motion-version" in note


def invoke(*arguments):
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)])


def test_a_folder_of_files_is_told_how_to_be_named(tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"x": torch.zeros(1)}, tmp_path / name)
    result = invoke(tmp_path)
    assert result.exit_code == 2
    with pytest.raises(CheckpointError, match=r"holds 2 weight files \(a.safetensors, …\)"):
        identify(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="a folder without a model"):
        identify(tmp_path / "empty")


def test_the_command_prints_one_line_a_file_and_complete_json(tmp_path):
    save_file({"<look>": torch.randn(2, 768)}, tmp_path / "look.safetensors")
    motion = TINY / "motion_module.safetensors"
    result = invoke(tmp_path / "look.safetensors", motion, TINY / "base")
    lines = result.stdout.splitlines()
    assert len(lines) == 3
    assert lines[0].endswith(
        "look.safetensors: embedding for SD1.5; goes in embeddings; token <look>; vectors 2; "
        "parameters 1536 in fp32"
    )
    records = [json.loads(line) for line in invoke(motion, "--json").stdout.splitlines()]
    assert records[0]["kind"] == "motion module"
    assert records[0]["dtype"] == "fp16"
    assert records[0]["parameters"] > 1e6
    assert {"path", "family", "version", "goes_in", "betas", "frames"} <= records[0].keys()


@pytest.mark.parametrize("content", ["[]", "{", "[" * 100_000, '{"block_out_channels": 3}'])
def test_a_folder_with_a_broken_configuration_is_refused(tmp_path, content):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(content)
    expected = r"config.json: (is no JSON|is JSON|names no block_out_channels)"
    with pytest.raises(CheckpointError, match=expected):
        identify(tmp_path)


def test_clips_and_prompt_files_are_inspected_too(asked, tmp_path):
    job = Job(name="knight", prompt={0: "a red circle"}, seed=7, width=96, height=64, frames=2)
    clip = tmp_path / "knight-7.webp"
    frames = np.zeros((2, 64, 96, 3), np.uint8)
    write_clip(frames, clip, Output(format="webp"), text=MARK + dump_job(job))
    prompts = tmp_path / "two.yaml"
    prompts.write_text("jobs: [{prompt: a}, {prompt: b, base: bundled:tiny/slanted, motion: null}]")
    done = asked("inspect", clip, prompts, "--json")
    made, planned = map(json.loads, done.stdout.splitlines())
    assert (made["kind"], made["goes_in"], made["prompt"]) == ("clip", "generate", "a red circle")
    assert (made["seed"], made["frames"]) == ("7", "2 of 96 x 64")
    assert (planned["kind"], planned["jobs"]) == ("prompt file", "2")
    assert planned["base"] == "bundled:tiny, bundled:tiny/slanted"
    prompts.write_text("jobs: [{promt: a}]")
    done = asked("inspect", prompts)
    assert (done.exit_code, "promt" in done.stderr) == (2, True)
