"""Injected folders: ours and stock diffusers' alike."""

import json
import shutil

import pytest
import torch
from conftest import TINY, new_motion
from diffusers import AnimateDiffPipeline
from safetensors.torch import save_file

from animatediff_core import inflate, load_motion_module, save_motion_module
from animatediff_core.checkpoints.base import load_base
from animatediff_core.errors import CheckpointError
from animatediff_core.jobs import Adapter
from animatediff_core.runs import inject
from animatediff_core.runs.model import Parts, find, load

LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.fixture
def parts(tmp_path):
    save_file(
        {
            f"{LAYER}.lora_up.weight": torch.randn(48, 2),
            f"{LAYER}.lora_down.weight": torch.randn(2, 48),
        },
        tmp_path / "l.safetensors",
    )
    motion = new_motion((48, 96, 160), norm_num_groups=16, num_attention_heads=8, frame_norm="clip")
    save_motion_module(motion, tmp_path / "m.safetensors")
    return Parts(
        base="bundled:tiny",
        motion=str(tmp_path / "m.safetensors"),
        loras=(Adapter(path=str(tmp_path / "l.safetensors"), scale=0.5),),
    )  # fmt: skip


def test_stock_diffusers_opens_it_and_agrees_where_the_norm_does(parts, tmp_path):
    folder = inject.run(inject.plan(parts, tmp_path / "model"))
    pipeline = AnimateDiffPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    x = torch.randn(1, 4, 4, 8, 8)
    text = torch.randn(1, 5, 128)
    animated = inflate(
        load_base(str(folder)).unet, load_motion_module(folder / "motion_module.safetensors")
    )
    with torch.no_grad():
        theirs = pipeline.unet(x, 500, text.repeat_interleave(4, 0)).sample
        ours = animated(x, 500, text)
    assert (theirs - ours).abs().max() < 1e-4
    frames = pipeline(
        "a red circle", num_frames=4, width=32, height=32, num_inference_steps=2
    ).frames
    assert len(frames[0]) == 4


def test_the_folder_is_its_parts_bit_for_bit_and_records_them(parts, tmp_path):
    folder = inject.run(inject.plan(parts, tmp_path / "model"))
    base, motion = load(find(parts, offline=True), offline=True)
    again, moved = load(find(Parts(base=str(folder)), offline=True), offline=True)
    for one, other in ((base.unet, again.unet), (motion, moved), (base.vae, again.vae)):
        assert all(torch.equal(t, other.state_dict()[k]) for k, t in one.state_dict().items())
    record = json.loads((folder / "animatediff.json").read_text())
    assert [s["role"] for s in record["sources"]] == ["base", "motion", "lora"]
    assert all(len(s["sha256"]) == 64 for s in record["sources"])
    assert record["sources"][2]["scale"] == 0.5


def test_a_folder_that_is_there_is_not_touched(parts, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("keep")
    with pytest.raises(CheckpointError, match="exists already"):
        inject.plan(parts, tmp_path / "model")
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["mine.txt"]


def test_a_damaged_folder_is_named(tmp_path):
    shutil.copytree(TINY / "base", tmp_path / "base")
    weights = tmp_path / "base" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        load_base(str(tmp_path / "base"))
    shutil.rmtree(tmp_path / "base" / "vae")
    with pytest.raises(CheckpointError, match="no vae/"):
        load_base(str(tmp_path / "base"))
