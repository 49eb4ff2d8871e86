"""inspect, --dry-run and generate give one verdict on a file: used, or one sentence."""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from conftest import TINY, new_motion
from diffusers.models import ControlNetModel
from diffusers.models.adapter import T2IAdapter
from hollow import write_hollow
from safetensors.torch import save_file
from test_single_file import checkpoint, small_families  # noqa: F401
from transformers.models.clip import CLIPTokenizer

from animatediff_core.adapters.fit import _LOADERS, check_fit, check_motion_lora, with_own_words
from animatediff_core.adapters.lora.layers import motion_deltas
from animatediff_core.checkpoints.base_model import BaseModel
from animatediff_core.checkpoints.loading import load_parts
from animatediff_core.checkpoints.motion_module import load_motion_module, official_tensors
from animatediff_core.checkpoints.single_file import family_model
from animatediff_core.errors import AnimateDiffError
from animatediff_core.motion import MotionModule
from animatediff_core.motion.sparse_ctrl import SparseControlNet
from animatediff_core.planning.models import Bases, ModelSpec, find_image_model, find_model
from animatediff_core.runs.inspect import run

Shapes = dict[str, tuple[int, ...]]
LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
SITE = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0"
LIGHT = ("loras", "motion_loras", "embeddings", "ip_adapters")
"""Kinds that are quick to check, of which there are more variants."""


def shapes(tensors: Mapping[str, torch.Tensor]) -> Shapes:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def right_files(base: BaseModel, motion: MotionModule, configs: Path) -> dict[str, Shapes]:
    """By key of a prompt file: the shapes of a file that goes into it."""
    with torch.device("meta"):
        control = ControlNetModel.from_unet(base.unet, load_weights_from_unet=False)
        adapter = T2IAdapter(3, list(base.unet.config.block_out_channels), 2, 8)
        sparse = SparseControlNet(base.unet, motion.config, "pictures")
    width = base.unet.config.cross_attention_dim
    image = {"image_proj.proj.weight": (4 * width, 16), "image_proj.proj.bias": (4 * width,),
             "image_proj.norm.weight": (width,), "image_proj.norm.bias": (width,)}  # fmt: skip
    layers = [name for name in base.unet.attn_processors if "attn2" in name]
    for number, name in enumerate(layers):
        out = base.unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape[0]
        image |= {f"ip_adapter.{2 * number + 1}.to_{k}_ip.weight": (out, width) for k in "kv"}
    return {
        "base": shapes(checkpoint(configs, "sd15")[0]),
        "unet": shapes(base.unet.state_dict()),
        "vae": shapes(base.vae.state_dict()),
        "motion": shapes(official_tensors(motion)),
        "loras": {f"{LAYER}.lora_up.weight": (64, 4), f"{LAYER}.lora_down.weight": (4, width),
                  f"{LAYER}.alpha": ()},
        "motion_loras": {f"{SITE}.attention_blocks.0.processor.to_q_lora.up.weight": (32, 4),
                         f"{SITE}.attention_blocks.0.processor.to_q_lora.down.weight": (4, 32)},
        "embeddings": {"<zxq>": (2, width)},
        "controlnets": shapes(control.state_dict()),
        "sparse_controls": {
            key.removeprefix("controlnet."): shape
            for key, shape in shapes(sparse.state_dict()).items()
        },
        "t2i_adapters": shapes(adapter.state_dict()),
        "ip_adapters": image,
    }  # fmt: skip


def damaged(right: Shapes, rng: random.Random, times: int) -> Iterator[tuple[str, Shapes]]:
    """Variants of a file: a tensor less, renamed, of another shape, more, all renamed."""
    for _ in range(times):
        name = rng.choice(list(right))
        others = {key: shape for key, shape in right.items() if key != name}
        shape = right[name]
        yield "lacks", others
        yield "renamed", others | {f"{name}x": shape}
        wrong = (*shape[:-1], shape[-1] + 1) if shape else (3,)
        yield "misshapen", {key: wrong if key == name else s for key, s in right.items()}
        yield "unknown", right | {f"{name}_more.weight": (4,)}
    yield "prefixed", {f"strange.{key}": shape for key, shape in right.items()}


@dataclass
class World:
    """A base model and a motion module with values, and without."""

    base: BaseModel
    motion: MotionModule
    spec: ModelSpec
    files: dict[str, Shapes]


@pytest.fixture
def world(tmp_path, small_families) -> World:  # noqa: F811
    with torch.device("meta"):
        base = family_model("SD1.5", "m")
    motion = new_motion((32, 64, 64, 64), layers_per_block=2)
    files = right_files(base, motion, small_families)
    base_path = write(tmp_path / "base.safetensors", files["base"])
    save_file(official_tensors(motion), tmp_path / "motion.safetensors")
    spec = ModelSpec(
        base=str(base_path), motion=str(tmp_path / "motion.safetensors"), motion_version="v2"
    )
    loaded = with_tiny_words(load_parts(base_path, "m", None, None, own_vae=True))
    return World(loaded, motion, spec, files)


def with_tiny_words(base: BaseModel) -> BaseModel:
    """CLIP's own vocabulary is slow to copy."""
    return replace(base, tokenizers=[CLIPTokenizer.from_pretrained(TINY / "base" / "tokenizer")])


def write(path: Path, wanted: Shapes) -> Path:
    """A hollow file; a small one has ones, because zeros change nothing."""
    if len(wanted) < 100:
        save_file({key: torch.ones(shape) for key, shape in wanted.items()}, path)
        return path
    return write_hollow(path, wanted, "F32")


def verdict(call: Callable[[], object]) -> str:
    """Empty if a file is used, else the sentence without its path."""
    try:
        call()
    except AnimateDiffError as error:
        return str(error).partition(".safetensors: ")[2] or str(error)
    return ""


def load(key: str, path: Path, world: World) -> object:
    """What `generate` does after planning."""
    if key == "base":
        return load_parts(path, str(path), None, None, own_vae=True)
    if key == "motion":
        return load_motion_module(path, version="v2", dtype=None)
    if key == "motion_loras":
        return motion_deltas(world.motion, path)
    base = with_own_words(world.base) if key == "embeddings" else world.base
    return _LOADERS[key](base, path)


def plan(key: str, path: Path, world: World, empty: BaseModel, bases: Bases) -> object:
    """What --dry-run does."""
    if key == "base":
        return find_image_model(ModelSpec(base=str(path)), offline=True)
    if key == "motion":
        return find_model(replace(world.spec, motion=str(path)), offline=True, bases=bases)
    if key == "motion_loras":
        return check_motion_lora(str(path), world.motion, offline=True)
    base = with_own_words(empty) if key == "embeddings" else empty
    return check_fit(key, str(path), base, offline=True)


def test_three_paths_give_one_verdict_on_200_files(tmp_path, world):
    rng, bases = random.Random(7), {}
    empty = with_tiny_words(find_model(world.spec, offline=True, bases=bases).base)
    paths = {key: write(tmp_path / f"{key}.safetensors", s) for key, s in world.files.items()}
    cases = [(key, o, path) for key in paths for o, path in paths.items()]
    for number, (key, wanted) in enumerate(world.files.items()):
        some = list(damaged(wanted, rng, 5)) if key in LIGHT else []
        some = some or [list(damaged(wanted, rng, 1))[number % 5]]
        for count, (name, shapes) in enumerate(some):
            cases.append((key, name, write(tmp_path / f"{key}-{count}.safetensors", shapes)))
    assert len(cases) > 200
    inspected = dict(run(list(dict.fromkeys(path for _, _, path in cases))))
    wrong = []
    for key, name, path in cases:
        planned = verdict(lambda: plan(key, path, world, empty, bases))  # noqa: B023
        loaded = verdict(lambda: load(key, path, world))  # noqa: B023
        report = inspected[path]
        if bool(planned) != bool(loaded) or (name == key and planned):
            wrong.append((key, name, planned, loaded))
        if name in paths:
            continue
        if isinstance(report, AnimateDiffError):
            said = str(report).partition(".safetensors: ")[2]
        else:
            said = report.details.get("note", "") if report.goes_in == "nowhere" else ""
        for_base = "SD1.5" in getattr(report, "family", "")  # else inspect has no model for it
        if not planned.endswith(said) or (for_base and planned and not said):
            wrong.append((key, name, planned, said))
    assert wrong == [], "\n".join(map(str, wrong))
