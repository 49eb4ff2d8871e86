"""Single-file checkpoints: read, refused, and written in the layout of the first release."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import new_motion, weight_pairs
from diffusers import StableDiffusionPipeline
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from hollow import write_hollow
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.models.clip import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
)

from animatediff_core import generate, save_motion_module
from animatediff_core.adapters.identify import identify
from animatediff_core.checkpoints import families
from animatediff_core.checkpoints.base_model import BaseModel
from animatediff_core.checkpoints.families import CONFIGS, FOLDERS, single_file_of
from animatediff_core.checkpoints.loading import load_base
from animatediff_core.checkpoints.sd_names import single_file_tensors, unet_names
from animatediff_core.checkpoints.single_file import (
    clip_tokenizer,
    family_model,
    load_single_vae,
)
from animatediff_core.checkpoints.write import write_base_folder, write_single_file
from animatediff_core.errors import CheckpointError
from animatediff_core.jobs import Adapter, Embedding, Job
from animatediff_core.motion import VERSIONS, MotionModule
from animatediff_core.planning import models as model
from animatediff_core.planning.models import ModelSpec, find_model, model_files
from animatediff_core.runs import inject
from animatediff_core.sampling.loading import load_model
from animatediff_core.weights.match import shapes_of


def test_the_word_pieces_are_clips_own():
    # ids as openai/clip-vit-large-patch14 gives them
    tokenizer = clip_tokenizer()
    assert len(tokenizer) == 49408
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("Hello, World!").input_ids == [49406, 3306, 267, 1002, 256, 49407]
    assert tokenizer("a", padding="max_length").input_ids == [49406, 320] + 75 * [49407]
    open_clips = clip_tokenizer(pad_token="!")
    assert open_clips("a", padding="max_length").input_ids == [49406, 320, 49407] + 74 * [0]


@pytest.mark.parametrize(("family", "pads"), [("sd15", [49407]), ("sd21", [0]),
                                              ("sdxl", [49407, 0])])  # fmt: skip
def test_openclips_encoders_pad_with_an_exclamation_mark(tmp_path, small_families, family, pads):
    write_checkpoint(tmp_path / "m.safetensors", small_families, family)
    base = load_base(str(tmp_path / "m.safetensors"))
    padded = [one("a", padding="max_length").input_ids for one in base.tokenizers]
    assert padded == [[49406, 320, 49407] + 74 * [pad] for pad in pads]


SMALL = {
    "sd15/unet": {"block_out_channels": [32, 64, 64, 64], "cross_attention_dim": 32},
    "sd15/vae": {"block_out_channels": [32, 32, 64, 64]},
    "sd15/text_encoder": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                          "num_attention_heads": 2, "projection_dim": 32},
    "sd21/unet": {"block_out_channels": [32, 64, 64, 64], "cross_attention_dim": 48,
                  "attention_head_dim": [2, 2, 2, 2]},
    "sd21/vae": {"block_out_channels": [32, 32, 64, 64]},
    "sd21/text_encoder": {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
                          "num_attention_heads": 2, "projection_dim": 16},
    "sdxl/unet": {"block_out_channels": [32, 64, 64], "cross_attention_dim": 72,
                  "attention_head_dim": [2, 2, 2], "transformer_layers_per_block": [1, 1, 2],
                  "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 88},
    "sdxl/vae": {"block_out_channels": [32, 32, 64, 64]},
    "sdxl/text_encoder_2": {"hidden_size": 40, "intermediate_size": 64, "num_hidden_layers": 2,
                            "num_attention_heads": 2, "projection_dim": 40},
}  # fmt: skip


@pytest.fixture
def small_families(tmp_path, monkeypatch):
    """The package's families with fewer channels and layers."""
    configs = tmp_path / "configs"
    shutil.copytree(CONFIGS, configs)
    for name, changes in SMALL.items():
        file = configs / name / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    monkeypatch.setattr(families, "CONFIGS", configs)
    return configs


@pytest.mark.parametrize("family", FOLDERS.values())
def test_every_tensor_of_a_checkpoint_finds_its_place(tmp_path, small_families, family):
    check(tmp_path, small_families, family, torch.float32)


def test_a_checkpoint_without_its_first_layer_is_named(tmp_path):
    save_file({"model.diffusion_model.input_blocks.1.0.x": torch.ones(1)}, tmp_path / "m.ckpt")
    with pytest.raises(
        CheckpointError, match="which lacks the first layer of its UNet; use a full"
    ):
        load_base(str(tmp_path / "m.ckpt"))


def test_temporal_layers_inside_a_checkpoint_are_named(tmp_path, small_families, caplog):
    tensors, own = checkpoint(small_families, "sd15")
    layer = "model.diffusion_model.input_blocks.1.2.temporal_transformer.norm.weight"
    save_file(tensors | {layer: torch.ones(32)}, tmp_path / "m.safetensors")
    note = "1 tensors inside, not used; name the module with motion"
    assert identify(tmp_path / "m.safetensors").details["motion module"] == note
    assert_holds(load_base(str(tmp_path / "m.safetensors")), own)
    assert "holds 1 tensors of a motion module, which are left out" in caplog.text


@pytest.mark.parametrize("family", FOLDERS.values())
def test_the_wrapped_pickles_of_the_first_releases_open_too(tmp_path, small_families, family):
    tensors, own = checkpoint(small_families, family)
    path = tmp_path / "m.ckpt"
    torch.save({"epoch": 3, "global_step": 875000, "state_dict": tensors}, path)
    base = load_base(str(path))
    assert_holds(base, own)
    assert base.prediction_type == "epsilon"


@pytest.mark.slow
def test_a_full_size_checkpoint_opens_with_every_tensor_in_its_place(tmp_path):
    check(tmp_path, CONFIGS, "sd15", torch.float16)


def without_text_model(tensors):
    return {key.replace(".text_model.", "."): tensor for key, tensor in tensors.items()}


def with_position_ids(tensors):
    key = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    return {**tensors, key: torch.arange(77).unsqueeze(0)}


def averaged(tensors):
    """The UNet as the official trainer keeps its running average: the dots are gone."""
    return {
        f"model_ema.{key.removeprefix('model.').replace('.', '')}": tensor
        for key, tensor in tensors.items()
        if key.startswith("model.diffusion_model.")
    } | {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(1)}


def with_average(tensors):
    other = {key: tensor + 1 for key, tensor in averaged(tensors).items()}
    return {**tensors, **other}


def only_average(tensors):
    rest = {k: t for k, t in tensors.items() if not k.startswith("model.diffusion_model.")}
    return {**rest, **averaged(tensors)}


@pytest.mark.parametrize(
    "variant",
    [without_text_model, with_position_ids, with_average, only_average],
    ids=lambda variant: variant.__name__,
)
def test_variants_of_the_layout_give_the_same_model(tmp_path, small_families, variant):
    tensors, own = checkpoint(small_families, "sd15")
    save_file(variant(tensors), tmp_path / "m.safetensors")
    assert_holds(load_base(str(tmp_path / "m.safetensors")), own)
    report = identify(tmp_path / "m.safetensors")
    assert (report.kind, report.family, report.goes_in) == ("base model", "SD1.5", "base")


@pytest.mark.parametrize(
    "form", ["original with prefix", "original", "diffusers", "old diffusers", "pickle"]
)
@pytest.mark.parametrize(("family", "factor"), [("sd15", 0.18215), ("sdxl", 0.13025)])
def test_a_vae_file_opens_with_its_bases_factor(tmp_path, small_families, form, family, factor):
    tensors, own = checkpoint(small_families, family)
    config = AutoencoderKL.load_config(small_families / family / "vae")
    path = write_vae(tmp_path, form, tensors, own[1], small_families / family / "vae")
    vae = load_single_vae(path, torch.float32, config)
    assert vae.config.scaling_factor == factor
    assert all(torch.equal(t.half(), own[1][key]) for key, t in vae.state_dict().items())
    assert identify(path).goes_in == "vae"


@pytest.mark.parametrize("form", ["original", "folder"])
def test_a_separate_vae_takes_the_place_of_a_missing_one(tmp_path, small_families, form):
    tensors, own = checkpoint(small_families, "sdxl")
    bare = {k: t for k, t in tensors.items() if not k.startswith("first_stage_model.")}
    save_file(bare, tmp_path / "m.safetensors")
    vae = write_vae(tmp_path, form, tensors, own[1], small_families / "sdxl" / "vae")
    base = load_base(str(tmp_path / "m.safetensors"), vae=str(vae))
    assert_holds(base, own)
    assert base.vae.config.scaling_factor == 0.13025


def write_vae(folder, form, tensors, own, config):
    """The checkpoint's VAE by itself, in one of the forms in which they are shared."""
    prefix = "first_stage_model."
    path = folder / "vae.safetensors"
    plain = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
    if form == "original with prefix":
        save_file({prefix + key: tensor for key, tensor in plain.items()}, path)
    elif form == "original":
        save_file({**plain, "loss.logvar": torch.zeros(1), "model_ema.decay": torch.ones(1)}, path)
    elif form == "pickle":
        path = folder / "vae.pt"
        torch.save({"state_dict": plain}, path)
    elif form == "diffusers":
        save_file(own, path)
    elif form == "old diffusers":
        names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        old = dict(own)
        for key in own:
            for new, before in names.items():
                if f".attentions.0.{new}." in key:
                    old[key.replace(new, before)] = old.pop(key)
        save_file(old, path)
    else:
        path = folder / "vae"
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(config))
        vae.load_state_dict({key: tensor.float() for key, tensor in own.items()})
        vae.save_pretrained(path)
    return path


def test_a_checkpoint_without_a_part_is_refused(tmp_path, small_families):
    for part, told in (("cond_stage_model.transformer.text_model.final",
                        "text encoder: it lacks 2 of 36 "
                        "tensors .cond_stage_model.transformer.final_layer_norm"),
                       ("first_stage_model.decoder.conv_in", "VAE: it lacks 2 of"),
                       ("model.diffusion_model.out.", "UNet: it lacks 4 of"),
                       ("first_stage_model.", "has no VAE inside; name one with --vae"),
                       ("cond_stage_model.", "SD1.5, which has no text encoder inside; use a full"),
                       ("model.", "is no base checkpoint")):  # fmt: skip
        write_checkpoint(tmp_path / "m.safetensors", small_families, "sd15", leave=part)
        with pytest.raises(CheckpointError, match=told):
            load_base(str(tmp_path / "m.safetensors"))


UNET = "model.diffusion_model."
CONV_IN = f"{UNET}input_blocks.0.0.weight"
TEXT = {"cond_stage_model.transformer.x": (1,)}


def unet_of(width, channels=4):
    return {CONV_IN: (320, channels, 3, 3), f"{UNET}input_blocks.1.1.attn2.to_k.weight": (9, width)}


OTHERS = {
    "SD1.5 inpainting": (unet_of(768, 9) | TEXT, "reads 9 channels instead of 4"),
    "SD2 inpainting": (unet_of(1024, 9) | TEXT, "reads 9 channels"),
    "SDXL inpainting": (unet_of(2048, 9) | TEXT, "reads 9 channels"),
    "SD1.5 InstructPix2Pix": (unet_of(768, 8) | TEXT, "reads 8 channels"),
    "SD2 depth": (unet_of(1024, 5) | TEXT, "reads 5 channels"),
    "SD2 upscaler": (unet_of(1024, 7) | TEXT, "reads 7 channels"),
    "SD2 unCLIP": (unet_of(1024) | TEXT | {f"{UNET}label_emb.0.0.weight": (1, 1)}, "reads images"),
    "SDXL refiner": (
        unet_of(1280) | {"conditioner.embedders.0.model.ln_final.weight": (1280,)},
        "only finishes images",
    ),
    "SDXL EDM": (unet_of(2048) | TEXT | {"edm_mean": (4,)}, "noise schedule"),
    "Stable Diffusion 3": ({f"{UNET}joint_blocks.0.x_block.attn.qkv.weight": (1, 1)}, "no motion"),
    "Flux": ({"double_blocks.0.img_attn.norm.key_norm.scale": (128,)}, "no motion module fits"),
    "Stable Cascade": ({"clip_txt_mapper.weight": (2048, 1280)}, "no motion module fits"),
    "text width 512": (unet_of(512) | TEXT, "no known family"),
    "unknown": ({f"{UNET}blocks.0.weight": (1,)}, "not Stable Diffusion's"),
}  # fmt: skip


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_are_refused_by_name(tmp_path, family):
    shapes, why = OTHERS[family]
    save_file(
        {key: torch.zeros(shape) for key, shape in shapes.items()}, tmp_path / "m.safetensors"
    )
    of_family = "" if family == "unknown" else f" of family {family}"
    with pytest.raises(CheckpointError, match=f"is a checkpoint{of_family}, .*{why}"):
        load_base(str(tmp_path / "m.safetensors"))
    report = identify(tmp_path / "m.safetensors")
    assert (report.kind, report.family, report.goes_in) == ("base model", family, "nowhere")


@pytest.mark.parametrize(
    ("family", "marks", "metadata", "predicts"),
    [
        ("sd15", {}, {}, "epsilon"),
        ("sd15", {"v_pred": torch.zeros(0)}, {}, "v_prediction"),
        ("sdxl", {}, {}, "epsilon"),
        ("sdxl", {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, {}, "v_prediction"),
        ("sdxl", {}, {"modelspec.prediction_type": "v"}, "v_prediction"),
        ("sd21", {}, {}, "v_prediction"),
        ("sd21", {}, {"modelspec.prediction_type": "epsilon"}, "epsilon"),
        ("sd21", {"global_step": torch.tensor(875000)}, {}, "epsilon"),
        ("sd21", {"global_step": torch.tensor(140000)}, {}, "v_prediction"),
    ],
)
def test_the_content_tells_what_the_unet_predicts(
    tmp_path, small_families, caplog, family, marks, metadata, predicts
):
    tensors, _ = checkpoint(small_families, family)
    save_file({**tensors, **marks}, tmp_path / "m.safetensors", metadata=metadata or None)
    base = load_base(str(tmp_path / "m.safetensors"))
    assert base.prediction_type == predicts
    assert base.zero_snr == ("ztsnr" in marks)
    assumed = family == "sd21" and not marks and not metadata
    assert ("--prediction-type epsilon" in caplog.text) == assumed


@pytest.mark.parametrize("family", FOLDERS.values())
def test_a_written_checkpoint_has_the_official_names_and_comes_back_the_same(
    tmp_path, small_families, family
):
    tensors, own = checkpoint(small_families, family)
    save_file({**tensors, "v_pred": torch.zeros(0)}, tmp_path / "a.safetensors")
    base = load_base(str(tmp_path / "a.safetensors"), dtype=torch.float16)
    write_single_file(base, tmp_path / "b.safetensors")
    ours = single_file_tensors(base)
    unused = {"cond_stage_model.model.transformer.resblocks.2.ln_1.weight",
              "cond_stage_model.model.text_projection"}  # fmt: skip
    assert {key for key in ours if "position_ids" not in key} == tensors.keys() - unused
    for key, tensor in tensors.items():
        assert key in unused or torch.equal(ours[key].half(), tensor), key
    again = load_base(str(tmp_path / "b.safetensors"))
    assert_holds(again, own)
    assert again.prediction_type == "v_prediction"


@pytest.mark.parametrize("family", ["sd15", "sd21"])
def test_stock_diffusers_opens_a_written_checkpoint(tmp_path, small_families, family):
    # SDXL's pipeline wants OpenCLIP's own file for its second encoder's place; its converters
    # are compared below
    _, own = checkpoint(small_families, family)
    write_checkpoint(tmp_path / "a.safetensors", small_families, family)
    base = load_base(str(tmp_path / "a.safetensors"))
    write_single_file(base, tmp_path / "b.safetensors")
    write_base_folder(base, tmp_path / "config")
    pipeline = StableDiffusionPipeline.from_single_file(
        str(tmp_path / "b.safetensors"), config=str(tmp_path / "config"), local_files_only=True
    )
    for part, expected in zip(
        (pipeline.unet, pipeline.vae, pipeline.text_encoder), own, strict=True
    ):
        for key, tensor in part.state_dict().items():
            assert torch.equal(tensor.half(), expected[key]), key


@pytest.mark.parametrize(("family", "count"), [("sd15", 686), ("sd21", 686), ("sdxl", 1680)])
def test_full_size_names_are_those_that_diffusers_converters_read(family, count):
    base = full_size(family)
    names = unet_names(base.unet)
    assert len(names) == len(set(names.values())) == count
    tensors = single_file_tensors(base)
    unet = convert_ldm_unet_checkpoint(dict(tensors), base.unet.config)
    vae = convert_ldm_vae_checkpoint(dict(tensors), base.vae.config)
    assert shapes_of(unet) == shapes_of(base.unet.state_dict())
    assert shapes_of(vae) == shapes_of(base.vae.state_dict())
    for number, encoder in enumerate(base.text_encoders):
        prefix = f"conditioner.embedders.{number}." if family == "sdxl" else "cond_stage_model."
        if f"{prefix}model.ln_final.weight" in tensors:
            read = convert_open_clip_checkpoint(encoder, tensors, prefix=f"{prefix}model.")
        else:
            read = convert_ldm_clip_checkpoint(
                {key: t for key, t in tensors.items() if key.startswith(prefix)}
            )
        plain = {k.removeprefix("text_model."): t for k, t in read.items() if "_ids" not in k}
        own = {k.removeprefix("text_model."): t for k, t in encoder.state_dict().items()}
        assert shapes_of(plain) == shapes_of(own)
    kind = single_file_of({key: tuple(t.shape) for key, t in tensors.items()})
    assert kind is not None
    assert (FOLDERS[kind.family], kind.why_not, kind.vae) == (family, None, True)


def test_a_full_size_sd15_file_has_as_many_tensors_as_the_official_one():
    assert len(single_file_tensors(full_size("sd15"))) == 1131  # v1-5-pruned-emaonly's


def full_size(family):
    """A base model of full size without weights."""
    with torch.device("meta"):
        unet, vae, *texts = parts_of(CONFIGS, family)
    tokenizers = [clip_tokenizer() for _ in texts]
    return BaseModel(unet=unet, vae=vae, text_encoders=texts, tokenizers=tokenizers,
                     scheduler_config={}, family=family, source=family)  # fmt: skip


def check(folder, configs, family, dtype):
    own = write_checkpoint(folder / "m.safetensors", configs, family)
    assert_holds(load_base(str(folder / "m.safetensors"), dtype=dtype), own)


def assert_holds(base, own):
    parts = (base.unet, base.vae, *base.text_encoders)
    for part, expected in zip(parts, own, strict=True):
        opened = part.state_dict()
        assert opened.keys() == expected.keys()
        for key, tensor in opened.items():
            assert torch.equal(tensor.half(), expected[key]), key


def write_checkpoint(path, configs, family, leave="none"):
    """A file in the family's own layout; returns what each part must hold."""
    tensors, own = checkpoint(configs, family)
    save_file({key: t for key, t in tensors.items() if not key.startswith(leave)}, path)
    return own


def checkpoint(configs, family):
    """Tensors in the family's own layout, and what each part must hold."""
    with torch.device("meta"):
        parts = parts_of(configs, family)
    own = [filled(part) for part in parts]
    unet = {unet_key(key, parts[0]): tensor for key, tensor in own[0].items()}
    named = {UNET: unet, "first_stage_model.": dict(vae_item(k, t) for k, t in own[1].items())}
    if family == "sd21":
        named["cond_stage_model.model."] = open_clip(own[2]) | {
            "transformer.resblocks.2.ln_1.weight": torch.ones(48).half(),  # a layer too many
            "text_projection": torch.ones(48, 48).half(),
        }
    else:
        text = "conditioner.embedders.0" if family == "sdxl" else "cond_stage_model"
        named[f"{text}.transformer."] = {
            f"text_model.{k.removeprefix('text_model.')}": t for k, t in own[2].items()
        }
    if family == "sdxl":
        named["conditioner.embedders.1.model."] = open_clip(own[3])
    file = {prefix + key: t for prefix, tensors in named.items() for key, t in tensors.items()}
    return {key: tensor.contiguous() for key, tensor in file.items()}, own


def parts_of(configs, family) -> list[nn.Module]:
    """UNet, VAE and text encoders of a family."""
    unet = UNet2DConditionModel.from_config(
        UNet2DConditionModel.load_config(configs / family / "unet")
    )
    vae = AutoencoderKL.from_config(AutoencoderKL.load_config(configs / family / "vae"))
    first = "sd21" if family == "sd21" else "sd15"
    parts = [unet, vae, CLIPTextModel(text_config(configs, first, ""))]
    if family == "sdxl":
        parts.append(CLIPTextModelWithProjection(text_config(configs, "sdxl", "_2")))
    return parts


def text_config(configs, family, number):
    return CLIPTextConfig.from_json_file(configs / family / f"text_encoder{number}" / "config.json")


def filled(part: nn.Module) -> dict[str, Tensor]:
    """Random tensors of the part's shapes, exact in fp16 and small enough to run."""
    generator = torch.Generator().manual_seed(0)
    return {
        key: (torch.randn(tensor.shape, generator=generator) / 32).half()
        for key, tensor in part.state_dict().items()
    }


RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1",
          "conv_shortcut": "skip_connection"}  # fmt: skip


def unet_key(key: str, unet: UNet2DConditionModel) -> str:
    """diffusers' name -> the first release's."""
    for theirs, official in (
        ("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"),
        ("add_embedding.linear_1", "label_emb.0.0"), ("add_embedding.linear_2", "label_emb.0.2"),
        ("conv_in", "input_blocks.0.0"), ("conv_norm_out", "out.0"), ("conv_out", "out.2"),
    ):  # fmt: skip
        if key.startswith(theirs):
            return key.replace(theirs, official)
    if ".resnets." in key:
        for theirs, official in RESNET.items():
            key = key.replace(f".{theirs}.", f".{official}.")
    key = re.sub(r"mid_block\.attentions\.0", "middle_block.1", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}", key)
    key = re.sub(
        r"down_blocks\.(\d)\.(resnets|attentions)\.(\d)",
        lambda m: f"input_blocks.{3 * int(m[1]) + int(m[3]) + 1}.{int(m[2] == 'attentions')}",
        key,
    )
    key = re.sub(
        r"up_blocks\.(\d)\.(resnets|attentions)\.(\d)",
        lambda m: f"output_blocks.{3 * int(m[1]) + int(m[3])}.{int(m[2] == 'attentions')}",
        key,
    )
    key = re.sub(
        r"down_blocks\.(\d)\.downsamplers\.0\.conv",
        lambda m: f"input_blocks.{3 * (int(m[1]) + 1)}.0.op",
        key,
    )
    return re.sub(
        r"up_blocks\.(\d)\.upsamplers\.0",
        lambda m: f"output_blocks.{3 * int(m[1]) + 2}.{1 + has_attention(unet, int(m[1]))}",
        key,
    )


def has_attention(unet: UNet2DConditionModel, up_block: int) -> bool:
    return hasattr(unet.up_blocks[up_block], "attentions")


def open_clip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder in OpenCLIP's layout, whose query, key and value are one tensor."""
    out = {}
    for key, tensor in tensors.items():
        name = key.removeprefix("text_model.")
        for theirs, official in (
            ("embeddings.token_embedding", "token_embedding"),
            ("embeddings.position_embedding.weight", "positional_embedding"),
            ("final_layer_norm", "ln_final"), ("encoder.layers", "transformer.resblocks"),
            ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"), ("self_attn.out_proj", "attn.out_proj"),
            ("text_projection.weight", "text_projection"),
        ):  # fmt: skip
            name = name.replace(theirs, official)
        if ".self_attn.q_proj." in name:
            others = [key.replace("q_proj", f"{o}_proj") for o in "kv"]
            joined = torch.cat([tensor, *(tensors[other] for other in others)])
            out[name.replace("self_attn.q_proj.", "attn.in_proj_")] = joined
        elif "self_attn" not in name:
            out[name] = tensor.T if name == "text_projection" else tensor
    return out


def vae_item(key: str, tensor: Tensor) -> tuple[str, Tensor]:
    """diffusers' name -> the first release's, whose attention is made of 1 x 1 convolutions."""
    if ".attentions." in key and ".group_norm." not in key and tensor.ndim == 2:
        tensor = tensor[:, :, None, None]
    for theirs, official in (
        ("conv_shortcut", "nin_shortcut"), ("conv_norm_out", "norm_out"),
        ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
        ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
        ("mid_block.attentions.0.to_", "mid.attn_1."),
    ):  # fmt: skip
        key = key.replace(theirs, official)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{3 - int(m[1])}.block", key)
    return re.sub(
        r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", key
    ), tensor


LORA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def write_parts(folder, configs, family):
    """A checkpoint, a motion module for it, and a LoRA on its text."""
    own = write_checkpoint(folder / "base.safetensors", configs, family)
    levels = (32, 64, 64) if family == "sdxl" else (32, 64, 64, 64)
    motion = new_motion(levels, layers_per_block=2)
    save_motion_module(motion, folder / "motion.safetensors")
    width = own[0]["down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"].shape[1]
    save_file(
        {
            f"{LORA.replace('blocks_0', 'blocks_1', 1)}.lora_up.weight": torch.randn(64, 2),
            f"{LORA.replace('blocks_0', 'blocks_1', 1)}.lora_down.weight": torch.randn(2, width),
        },
        folder / "lora.safetensors",
    )
    return ModelSpec(
        base=str(folder / "base.safetensors"),
        motion=str(folder / "motion.safetensors"),
        loras=(Adapter(path=str(folder / "lora.safetensors"), scale=0.7),),
    )


@pytest.mark.parametrize("family", FOLDERS.values())
def test_inject_writes_the_merged_model_as_one_checkpoint(tmp_path, small_families, family):
    parts = write_parts(tmp_path, small_families, family)
    planned = inject.plan(parts, tmp_path / "model", single_file=tmp_path / "merged.safetensors")
    inject.run(planned)
    merged, _ = load_model(find_model(parts, offline=True), offline=True)
    for source in ("merged.safetensors", "model"):
        again = load_base(str(tmp_path / source))
        for one, other in zip(
            (merged.unet, merged.vae, *merged.text_encoders),
            (again.unet, again.vae, *again.text_encoders),
            strict=True,
        ):
            for key, tensor, read in weight_pairs(one, other):
                assert torch.equal(tensor, read), key
        assert again.prediction_type == merged.prediction_type
    plain = load_base(parts.base).unet.state_dict()
    assert any(not torch.equal(t, plain[key]) for key, t in merged.unet.state_dict().items())


def test_a_merged_checkpoint_alone_needs_no_motion_module(asked, tmp_path, small_families):
    write_parts(tmp_path, small_families, "sd21")  # of a family without a preset
    (tmp_path / "motion.safetensors").unlink()
    out = tmp_path / "merged.safetensors"
    lora = f"{tmp_path}/lora.safetensors:0.7"
    request = ("inject", "--base", tmp_path / "base.safetensors", "--lora", lora, "--json")
    done = asked(*request, "--single-file", out)
    assert done.exit_code == 0, done.stderr
    record = json.loads(done.stdout)
    assert (record["single_file"], record["motion"], record["difference"]) == (str(out), None, None)
    plain, merged = (load_base(str(path)) for path in (tmp_path / "base.safetensors", out))
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    one, other = (base.unet.state_dict() for base in (plain, merged))
    assert {key for key in one if not torch.equal(one[key], other[key])} == {layer}


def test_sd2_takes_sd15s_motion_modules_but_not_its_loras_and_words(tmp_path, small_families):
    parts = write_parts(tmp_path, small_families, "sd21")
    found = find_model(parts, offline=True)
    assert (found.family, found.motion_config.block_out_channels) == ("SD2", (32, 64, 64, 64))
    assert identify(found.motion_path).details["base models"] == "SD1.5 and SD2"
    with pytest.raises(CheckpointError, match="no motion module is known for its family .SD2"):
        find_model(replace(parts, motion=None), offline=True)
    xl = new_motion((32, 64, 64), layers_per_block=2)
    save_motion_module(xl, tmp_path / "xl.safetensors")
    with pytest.raises(CheckpointError, match="motion module for SDXL but .* is SD2; use a motion"):
        find_model(replace(parts, motion=str(tmp_path / "xl.safetensors")), offline=True)


def test_an_sd15_file_on_an_sd2_base_is_refused_by_family(tmp_path, monkeypatch):
    monkeypatch.setattr(model, "load_parts", lambda *_, **__: family_model("SD2", str(tmp_path)))
    save_file({"<word>": torch.zeros(1, 768)}, tmp_path / "word.safetensors")
    layers = {
        f"{LORA}.lora_down.weight": torch.zeros(4, 768),
        f"{LORA}.lora_up.weight": torch.zeros(320, 4),
    }
    save_file(layers, tmp_path / "l.safetensors")
    with torch.device("meta"):
        shapes = shapes_of(MotionModule(VERSIONS["v3"]))
    module = str(write_hollow(tmp_path / "m.safetensors", shapes))
    parts = ModelSpec(base=str(tmp_path), motion=module, motion_version="v3")
    assert find_model(parts, offline=True).family == "SD2"
    lora = Adapter(path=str(tmp_path / "l.safetensors"))
    word = Embedding(path=str(tmp_path / "word.safetensors"))
    with pytest.raises(CheckpointError, match="is a LoRA for SD1.5 but .* is SD2; use one of the"):
        find_model(replace(parts, loras=(lora,)), offline=True)
    with pytest.raises(CheckpointError, match="is an embedding for SD1.5 but .* is SD2; use one"):
        find_model(replace(parts, embeddings=(word,)), offline=True)


def test_planning_asks_for_a_vae_and_refuses_what_is_none(tmp_path, small_families):
    parts = write_parts(tmp_path, small_families, "sd15")
    bare = tmp_path / "bare.safetensors"
    write_checkpoint(bare, small_families, "sd15", leave="first_stage_model.")
    with pytest.raises(CheckpointError, match="has no VAE inside; name one with --vae"):
        find_model(replace(parts, base=str(bare)), offline=True)
    with pytest.raises(CheckpointError, match="is a motion module, which .* not into vae"):
        find_model(replace(parts, base=str(bare), vae=parts.motion), offline=True)
    with pytest.raises(CheckpointError, match="no such file"):
        find_model(replace(parts, base=str(bare), vae="missing.safetensors"), offline=True)
    found = find_model(replace(parts, base=str(bare), vae=parts.base), offline=True)
    base, _ = load_model(found, offline=True)
    whole = load_base(parts.base).vae.state_dict()
    assert all(torch.equal(t, whole[key]) for key, t in base.vae.state_dict().items())
    assert [role for role, *_ in model_files(found, offline=True)] == [
        "base",
        "vae",
        "motion",
        "lora",
    ]


def test_a_given_prediction_type_wins_over_the_files(tmp_path, small_families):
    parts = write_parts(tmp_path, small_families, "sd21")
    assert (
        load_model(find_model(parts, offline=True), offline=True)[0].prediction_type
        == "v_prediction"
    )
    parts = replace(parts, prediction_type="epsilon")
    assert load_model(find_model(parts, offline=True), offline=True)[0].prediction_type == "epsilon"


@pytest.mark.parametrize(
    ("family", "marks"), [("sd21", ()), ("sdxl", ("v_pred", "ztsnr"))], ids=["sd21", "sdxl-ztsnr"]
)
def test_single_files_make_clips(tmp_path, small_families, family, marks):
    parts = write_parts(tmp_path, small_families, family)
    tensors, _ = checkpoint(small_families, family)
    tensors["first_stage_model.decoder.conv_out.weight"] *= 100  # random weights paint grey alone
    save_file(
        {**tensors, **{mark: torch.zeros(0) for mark in marks}}, tmp_path / "base.safetensors"
    )
    job = Job(name="a", prompt={0: "a"}, seed=1, base=parts.base, motion=parts.motion, frames=2,
              width=64, height=64, steps=2, scheduler="euler")  # fmt: skip
    (result,) = generate([job], output_dir=tmp_path)
    assert result.error is None
    assert result.frames.shape == (2, 64, 64, 3)
