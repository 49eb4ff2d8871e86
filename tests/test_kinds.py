"""Published kinds of weights: each has a name, and a use or the thing to use instead."""

import pytest
import torch
from conftest import ROOT, TINY, new_motion, new_unet
from diffusers import LatentConsistencyModelPipeline
from diffusers.models import UNet2DConditionModel
from hollow import write_hollow
from safetensors.torch import save_file
from small_model import LEVELS, write_model

from animatediff_core import denoise, inflate, load_motion_module, make_scheduler
from animatediff_core.adapters.identify import identify
from animatediff_core.checkpoints import published
from animatediff_core.checkpoints.file_report import require
from animatediff_core.checkpoints.loading import load_base
from animatediff_core.checkpoints.sd_names import unet_names
from animatediff_core.checkpoints.single_file import load_single_unet
from animatediff_core.conditions import LoadedModel
from animatediff_core.errors import CheckpointError
from animatediff_core.jobs import Job
from animatediff_core.motion import Conditions
from animatediff_core.planning.models import ModelSpec, find_image_model
from animatediff_core.runs.inspect import run
from animatediff_core.sampling.sample import _prepare

KINDS = {  # a name of each, as its publisher's files or the code that reads them have it
    "decoder.layers.3.conv.0.weight": "a TAESD that cannot be used: it is a small VAE",
    "taesd_decoder.3.conv.0.weight": "a TAESD that",
    "lllite_unet_down_blocks_1_attentions_0.conditioning1.0.weight": "a ControlNet-LLLite that",
    "control_add_embedding.linear_1.weight": "a union ControlNet that",
    "brushnet_down_blocks.0.weight": "a BrushNet that",
    "style_embedding": "a T2I style adapter that",
    "redux_up.weight": "a Flux Redux that",
    "768.0.linear.0.weight": "a hypernetwork that",
    "pose_encoder_state_dict.encoder_conv_in.weight": "a CameraCtrl that",
    "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0"
    ".attention_blocks.0.processor.qkv_merge.weight": "a CameraCtrl that",
    "img_encoder.conv_in.weight": "an AnimateLCM-I2V module that",
    "connector.latents": "an ELLA that",
    "id_encoder.vision_model.post_layernorm.weight": "a PhotoMaker that",
    "id_adapter_attn_layers.0.id_to_k.weight": "a PuLID that",
    "model.1.sub.0.RDB1.conv1.0.weight": "an upscaler that",
    "body.0.rdb1.conv1.weight": "an upscaler that",
    "layers.0.residual_group.blocks.0.attn.qkv.weight": "an upscaler that",
    "stylegan_decoder.constant_input.weight": "a face restorer that",
    "encoder.block.0.layer.0.SelfAttention.q.weight": "a T5 text encoder that",
    "model.layers.0.self_attn.q_proj.weight": "a language model that",
    "visual.transformer.resblocks.0.attn.in_proj_weight": "an image encoder in OpenCLIP's names",
    "model.diffusion_model.input_blocks.1.1.proj_in.scale_weight": "a scaled fp8 model that",
    "scaled_fp8": "a scaled fp8 model that",
    "down_blocks.0.attentions.0.proj_in.weight.absmax": "a quantised model that",
    "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": "a LoRA for Flux or HunyuanVideo",
    "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": "a LoRA for Flux or",
    "diffusion_model.joint_blocks.0.x_block.attn.qkv.lora_A.weight": "a LoRA for SD3 that",
    "diffusion_model.blocks.0.self_attn.q.lora_A.weight": "a LoRA for Wan that",
    "lora_unet_blocks_0_cross_attn_q.lora_down.weight": "a LoRA for Wan that",
    "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight": "a LoRA for a transformer model",
    "model.diffusion_model.input_blocks.1.1.time_stack.0.norm1.weight": "a Stable Video Diffusion",
    "down_blocks.0.temp_convs.0.conv1.0.weight": "a ModelScope or ZeroScope model that",
    "single_transformer_blocks.0.attn.to_q.weight": "a transformer model that",
    "encoder.downsamples.0.residual.0.gamma": "a video VAE that",
    "clip_l_out": "an embedding with output vectors that",
    "double_blocks.0.img_attn.qkv.weight": "a base model that cannot be used",
    "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": "a base model that cannot be",
    "blocks.0.modulation.x.head.modulation": "no LoRA for the image model, which loras takes: its "
    "tensors (blocks.0.modulation.x.head.modulation, x.y) are of no known kind of weights",
}


@pytest.mark.parametrize("name", KINDS)
def test_a_published_kind_is_named_and_never_unknown(tmp_path, name):
    path = write_hollow(tmp_path / "x.safetensors", {name: (4, 4), "x.y": (4,)})
    with pytest.raises(CheckpointError, match=r"^\S+: is ") as error:
        require(identify(path), "loras", path)
    assert str(error.value).startswith(f"{path}: is {KINDS[name]}")


def test_the_documentation_lists_every_kind():
    page = (ROOT / "docs" / "files.md").read_text("utf-8")
    for kind, _, note in published._KINDS:
        assert f"| {kind} | {note} |" in page


def test_a_hypernetwork_and_a_tensor_alone_are_named(tmp_path):
    layer = {"linear.0.weight": torch.ones(4, 2), "linear.0.bias": torch.ones(4)}
    torch.save({768: (layer, layer), "step": 5, "name": "h"}, tmp_path / "h.pt")
    assert identify(tmp_path / "h.pt").kind == "hypernetwork"
    torch.save(torch.ones(768), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="one tensor without a name, as an aesthetic grad"):
        identify(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("name", "start", "message"),
    [("m.gguf", b"GGUF", "is a quantised GGUF model, which cannot be used; use the .safetensors"),
     ("m.safetensors", b"GGUF", "is a quantised GGUF model"),
     ("m.onnx", b"\x08\x07", "is an ONNX model"), ("m.msgpack", b"\x81", "is Flax weights")],
)  # fmt: skip
def test_the_files_of_other_programs_are_named(tmp_path, name, start, message):
    (tmp_path / name).write_bytes(start + bytes(64))
    with pytest.raises(CheckpointError, match=message):
        identify(tmp_path / name)


@pytest.mark.parametrize(
    ("shapes", "kind", "details"),
    [
        ({"<a>": (2, 768), "<b>": (1, 768)}, "embedding of several words", "<a>, <b>"),
        ({"text_encoders_0": (2, 768), "text_encoders_1": (2, 1280)}, "embedding", "x"),
        ({"image_proj.latents": (1, 16, 1280), "image_proj.proj_in.weight": (1280, 512),
          "ip_adapter.1.to_k_ip.weight": (640, 2048)}, "IP-Adapter", "InstantID"),
    ],
)  # fmt: skip
def test_kinds_that_look_alike_are_told_apart(tmp_path, shapes, kind, details):
    report = identify(write_hollow(tmp_path / "x.safetensors", shapes))
    assert report.kind == kind
    assert details in (report.details.get(key) for key in ("token", "tokens", "form"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_model(folder)
    return folder


UNETS = {  # what is before diffusers' or the original names
    "diffusers": "", "diffusers pipeline": "unet.", "original": "model.diffusion_model.",
    "ComfyUI": "diffusion_model.", "bare": "",
}  # fmt: skip


@pytest.mark.parametrize("form", UNETS)
def test_a_unet_alone_is_read_in_every_spelling(tmp_path, form):
    other, path = new_unet(), tmp_path / "u.safetensors"
    names = {key: key for key in other.state_dict()}
    if not form.startswith("diffusers"):
        names = unet_names(other)
    save_file({UNETS[form] + names[k]: t for k, t in other.state_dict().items()}, path)
    assert (identify(path).kind, identify(path).goes_in) == ("UNet", "unet")
    found = load_single_unet(path, new_unet(seed=1).config, None).state_dict()
    assert found.keys() == other.state_dict().keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in other.state_dict().items())


def test_a_unet_alone_replaces_that_of_a_base_model(tmp_path, model):
    tensors, path = dict(new_unet(LEVELS, seed=9).state_dict()), tmp_path / "u.safetensors"
    save_file(tensors, path)
    spec = ModelSpec(base=str(model), unet=str(path))
    find_image_model(spec, offline=True)
    found = load_base(str(model), unet=str(path)).unet.state_dict()
    assert torch.equal(found["conv_in.weight"], tensors["conv_in.weight"])
    with pytest.raises(CheckpointError, match=r"is a UNet, which goes into unet \(--unet\), not"):
        find_image_model(ModelSpec(base=str(path)), offline=True)
    del tensors["conv_out.bias"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="unet: .* does not fit the UNet: it lacks 1 of"):
        find_image_model(spec, offline=True)


def test_a_unet_of_other_inputs_is_named(tmp_path):
    shapes = {"conv_in.weight": (320, 8, 3, 3),
              "down_blocks.0.resnets.0.conv1.weight": (320, 320, 3, 3)}  # fmt: skip
    report = identify(write_hollow(tmp_path / "x.safetensors", shapes))
    with pytest.raises(CheckpointError, match="a UNet that cannot be used: it reads 8 channels"):
        require(report, "unet", "x")


def test_a_unet_of_lcm_reads_the_guidance_scale(tmp_path):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**{**new_unet((32, 64)).config, "time_cond_proj_dim": 8}).eval()
    unet.save_pretrained(tmp_path / "unet")
    base_config = {**unet.config, "time_cond_proj_dim": None}
    loaded = load_single_unet(tmp_path / "unet", base_config, None)
    assert loaded.config.time_cond_proj_dim == 8
    animated = inflate(loaded, new_motion((32, 64)))
    sample, text = torch.randn(1, 4, 1, 8, 8), torch.randn(1, 3, 16)
    embedding = LatentConsistencyModelPipeline.get_guidance_scale_embedding(
        None, torch.tensor([7.0]), 8
    )
    with torch.no_grad():
        found = animated(sample, 500, text, Conditions(guidance_scale=8.0, motion_strength=0.0))
        wanted = unet(sample[:, :, 0], 500, text, timestep_cond=embedding).sample
        without = unet(sample[:, :, 0], 500, text).sample
    torch.testing.assert_close(found[:, :, 0], wanted)
    assert not torch.allclose(wanted, without)
    calls = []
    loaded.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((len(args[0]), kwargs["timestep_cond"][0, 4])),
        with_kwargs=True,
    )
    denoise(
        animated,
        make_scheduler("lcm", animated.motion.config),
        sample,
        text,
        -text,
        steps=2,
        guidance_scale=8.0,
    )
    assert calls == [(1, embedding[0, 4])] * 2  # one call a step: no negative half


@pytest.mark.parametrize(("spacing", "first"), [(None, 751), ("leading", 751), ("trailing", 999)])
def test_a_job_chooses_the_spacing_that_a_unet_was_distilled_with(spacing, first):
    base = load_base("bundled:tiny")
    animated = inflate(base.unet, load_motion_module(TINY / "motion_module.safetensors"))
    job = Job(name="a", prompt={0: "a"}, seed=1, steps=4, scheduler="euler",
              timestep_spacing=spacing)  # fmt: skip
    scheduler = _prepare(job, LoadedModel(base, animated, offline=True), None).scheduler
    scheduler.set_timesteps(4)
    assert float(scheduler.timesteps[0]) == first


def test_inspect_checks_a_file_for_the_model_of_its_family(tmp_path):
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    shapes = {f"{layer}.lora_up.weight": (1280, 4), f"{layer}.lora_down.weight": (4, 768)}
    path = write_hollow(tmp_path / "x.safetensors", shapes)
    ((_, report),) = run([path])
    assert report.family == "SD1.5"
    write_hollow(path, shapes | {f"{layer}.lora_up.weight": (320, 4)})
    ((_, error),) = run([path])
    assert "attn2_to_k has the shape of another family of models" in str(error)
