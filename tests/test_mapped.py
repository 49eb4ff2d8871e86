"""Weights come out of their file as its own pages, once, and go as soon as nobody needs them."""

import gc
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import HAS_SPEED, new_motion, weight_pairs
from safetensors.torch import load_file, save_file
from small_model import write_model
from transformers.models.clip import CLIPTextConfig, CLIPTextModel

import animatediff_core as ad
from animatediff_core.checkpoints.empty_model import fill, without_weights
from animatediff_core.checkpoints.loading import load_base
from animatediff_core.errors import CheckpointError
from animatediff_core.motion import MotionModule
from animatediff_core.weights.weight_file import open_weights

KINDS = (
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int8,
    torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2,
)  # fmt: skip


@pytest.fixture(scope="module")
def of_every_kind(tmp_path_factory):
    """A file of tensors of every type and of sizes below, at and above a page."""
    path = tmp_path_factory.mktemp("kinds") / "all.safetensors"
    shapes = ((), (0, 3), (1,), (3, 5), (1024,), (257, 33))
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{dtype} {shape}": (torch.rand(shape, generator=generator) * 9).to(dtype)
        for dtype in KINDS
        for shape in shapes
    }
    save_file(tensors, path)
    return path


def test_every_type_and_size_is_what_the_library_reads(of_every_kind):
    ours, theirs = open_weights(of_every_kind).tensors(), load_file(of_every_kind)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(ours[name].double(), tensor.double()), name


def test_only_wanted_names_are_read(of_every_kind):
    ours = open_weights(of_every_kind).tensors("torch.int8", "torch.bool")
    assert {str(tensor.dtype) for tensor in ours.values()} == {"torch.int8", "torch.bool"}


def test_writing_into_a_tensor_leaves_the_file_and_its_neighbours(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(5000), "b": torch.ones(5000)}, path)
    before = path.read_bytes()
    tensors = open_weights(path).tensors()
    tensors["a"].mul_(3)
    assert path.read_bytes() == before
    del tensors["b"]
    gc.collect()
    assert torch.equal(tensors["a"], torch.full((5000,), 3.0))
    assert torch.equal(open_weights(path).tensors()["a"], torch.ones(5000))


def test_a_view_keeps_its_pages(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.arange(1 << 16).float()}, path)
    row = open_weights(path).tensors().pop("a").view(256, 256)[200:].mul_(2)
    gc.collect()
    assert torch.equal(row.flatten(), 2 * torch.arange(200 * 256, 1 << 16).float())


def test_numbers_without_a_word_in_torch_end_in_one_sentence(tmp_path):
    path = tmp_path / "x.safetensors"
    header = b'{"a":{"dtype":"F8_E8M0","shape":[4],"data_offsets":[0,4]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    with pytest.raises(CheckpointError, match="x.safetensors"):
        open_weights(path).tensors()


def resident(path: Path) -> int:
    """Bytes of a file that this process holds in memory."""
    held, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = line.endswith(str(path))
        elif ours and line.startswith("Rss:"):
            held += int(line.split()[1]) * 1024
    return held


needs_smaps = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux only")


@needs_smaps
def test_pages_leave_memory_tensor_by_tensor(tmp_path):
    path, size = tmp_path / "x.safetensors", 1 << 20
    save_file({f"{i}": torch.full((size // 4,), float(i)) for i in range(4)}, path)
    tensors = open_weights(path).tensors()
    assert resident(path) < size / 2  # nothing is read before it is used
    for tensor in tensors.values():
        tensor.sum()
    del tensor
    assert resident(path) > 3.9 * size
    for left in (3, 2, 1):
        tensors.popitem()
        assert abs(resident(path) - left * size) < size / 4


@needs_smaps
def test_an_optimised_model_holds_no_second_copy(tmp_path):
    write_model(tmp_path / "model")
    unet = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    motion = tmp_path / "motion.safetensors"
    ad.save_motion_module(new_motion((32, 64, 64, 32)), motion)
    base, module = load_base(str(tmp_path / "model")), ad.load_motion_module(motion)
    animated = ad.inflate(base.unet, module)
    if HAS_SPEED:
        ad.optimize(animated)
    gc.collect()
    for path in (unet, motion):
        assert resident(path) < path.stat().st_size / 2  # the pages of small weights, no more


def test_half_precision_files_become_fp32_without_a_second_copy(tmp_path):
    path = tmp_path / "motion.safetensors"
    motion = new_motion()
    ad.save_motion_module(motion.half(), path)
    loaded = ad.load_motion_module(path)
    assert isinstance(loaded, MotionModule)
    for name, tensor, found in weight_pairs(motion, loaded):
        assert torch.equal(found, tensor.float()), name


def test_whole_numbers_as_weights_are_refused(tmp_path):
    write_model(tmp_path)
    path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["conv_in.weight"] = tensors["conv_in.weight"].to(torch.int8)
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match="quantised"):
        load_base(str(tmp_path))


def test_text_encoders_are_as_their_own_library_loads_them(tmp_path):
    write_model(tmp_path)
    ours = load_base(str(tmp_path)).text_encoders[0]
    theirs = CLIPTextModel.from_pretrained(tmp_path / "text_encoder")
    tokens = torch.from_numpy(np.arange(77)[None] % 50)
    with torch.no_grad():
        assert torch.equal(ours(tokens)[0], theirs(tokens)[0])
    assert ours.config._attn_implementation == theirs.config._attn_implementation


@pytest.mark.parametrize("clip", [True, False])
def test_clips_weights_alone_are_copied_out_of_their_file(clip):
    def build(config: object) -> torch.nn.Module:
        return CLIPTextModel(config) if clip else torch.nn.Linear(4, 3)

    small = CLIPTextConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                           num_attention_heads=2)  # fmt: skip
    model = without_weights(build, small)
    given = {name: torch.randn(tensor.shape) for name, tensor in model.state_dict().items()}
    fill(model, given.items(), None, "m.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, given[name])
        assert (tensor.data_ptr() == given[name].data_ptr()) is not clip
