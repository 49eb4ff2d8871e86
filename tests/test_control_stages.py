"""The stages that train a ControlNet and an IP-Adapter, and what generate makes of their files."""

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY
from diffusers.models import ControlNetModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers.models.clip import CLIPVisionConfig, CLIPVisionModelWithProjection

from animatediff_core.adapters.controlnet import load_controlnet
from animatediff_core.adapters.ip_adapter import attach_ip_adapters, read_ip_adapter
from animatediff_core.checkpoints.loading import load_base
from animatediff_core.errors import TrainingError
from animatediff_core.jobs.conditions import Canny
from animatediff_core.media.edges import canny
from animatediff_core.media.image import write_image
from animatediff_core.runs.train import Step, Written, run
from animatediff_core.tiny.clips import write_clips
from animatediff_core.training.clips import Clips, list_clips
from animatediff_core.training.config_file import load_train_config
from animatediff_core.training.stages.controlnet import (
    CONTROLNET_FILE,
    edge_condition,
    paired_condition,
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    list(write_clips(folder, count=4))
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    small = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, projection_dim=24, num_hidden_layers=1,
        num_attention_heads=2, image_size=32, patch_size=16,
    )  # fmt: skip
    CLIPVisionModelWithProjection(small).save_pretrained(folder)
    return folder


def config(drawn, tmp_path, **changes):
    given = {
        "base": str(TINY / "base"),
        "max_train_steps": 4,
        "train_batch_size": 2,
        "learning_rate": 1e-3,
        "checkpointing_steps": 2,
        "data": {
            "video_folder": str(drawn / "clips"),
            "csv_path": str(drawn / "clips.csv"),
            "sample_size": 32,
        },
    }
    given["data"] |= changes.pop("data", {})
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(given | changes))
    return load_train_config(path)


@pytest.mark.parametrize("small", [None, True])
def test_a_controlnet_begins_as_the_base_and_learns(drawn, tmp_path, small):
    made = config(
        drawn, tmp_path, stage="controlnet", canny=True, small=small, learning_rate=1e-2,
        max_train_steps=2,
    )  # fmt: skip
    plain = config(drawn, tmp_path, stage="image")
    events = list(run(made, tmp_path / "o"))
    steps = [e for e in events if isinstance(e, Step)]
    first = next(e for e in run(plain, tmp_path / "p") if isinstance(e, Step))
    assert steps[0].loss == pytest.approx(first.loss, rel=1e-4)  # zero convolutions add nothing
    assert steps[0].gradient_norm > 0
    assert events[-1] == Written(tmp_path / "o" / CONTROLNET_FILE, final=True)
    with safe_open(events[-1].path, "pt") as file:
        marks = file.metadata()
    assert marks.get("animatediff_controlnet") == ("small, ResNets alone" if small else None)
    stock = ControlNetModel.from_pretrained(tmp_path / "o" / "controlnet")
    assert stock.state_dict().keys() == load_file(events[-1].path).keys()
    base = load_base(str(TINY / "base"))
    control = load_controlnet(tmp_path / "o" / "controlnet", base.unet)
    x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 32, 128)
    with torch.no_grad():
        down, mid = control(x, 300, text, torch.rand(1, 3, 32, 32), return_dict=False)
    assert min(float(one.abs().max()) for one in (*down, mid)) > 0
    further = config(
        drawn, tmp_path, stage="controlnet", canny=True, controlnet=str(events[-1].path)
    )  # noqa: E501
    again = next(e for e in run(further, tmp_path / "q") if isinstance(e, Step))
    assert again.loss != steps[0].loss


def test_a_resumed_controlnet_is_that_of_an_uninterrupted_run(drawn, tmp_path):
    made = config(
        drawn, tmp_path, stage="controlnet", canny=True, max_train_steps=3, checkpointing_steps=2,
        train_batch_size=1,
    )  # fmt: skip
    list(run(made, tmp_path / "whole"))
    for event in run(made, tmp_path / "cut"):
        if isinstance(event, Step) and event.step == 2:
            break
    list(run(made, tmp_path / "cut", resume=True))
    whole, cut = (load_file(tmp_path / n / CONTROLNET_FILE) for n in ("whole", "cut"))
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


def test_an_ip_adapter_is_written_in_the_official_keys_and_acts(drawn, encoder, tmp_path):
    made = config(
        drawn, tmp_path, stage="ip-adapter", image_encoder=str(encoder), learning_rate=1e-2,
        image_dropout=0.5,
    )  # fmt: skip
    *_, written = run(made, tmp_path / "o")
    weights = read_ip_adapter(written.path)
    assert weights.form == "plain"
    numbers = range(1, len(weights.parts["ip_adapter"]), 2)
    parts = ("proj.weight", "proj.bias", "norm.weight", "norm.bias")
    assert load_file(written.path).keys() == {
        *(f"image_proj.{name}" for name in parts),
        *(f"ip_adapter.{number}.to_{kind}_ip.weight" for number in numbers for kind in "kv"),
    }
    assert tuple(weights.parts["image_proj"]["proj.weight"].shape) == (4 * 128, 24)
    base = load_base(str(TINY / "base"))
    x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 32, 128)
    with torch.no_grad():
        before = base.unet(x, 300, text, return_dict=False)[0]
        detach = attach_ip_adapters(base.unet, [(weights, 1.0)])
        added = {"image_embeds": [torch.randn(1, 1, 24)]}
        seen = base.unet(x, 300, text, added_cond_kwargs=added, return_dict=False)[0]
        detach()
    assert (seen - before).abs().max() > 1e-3
    key = next(k for k in weights.parts["ip_adapter"] if k.endswith("to_k_ip.weight"))
    attention = next(n for n in base.unet.attn_processors if "attn2" in n)
    text_keys = base.unet.get_submodule(attention.removesuffix(".processor")).to_k.weight
    assert not torch.equal(weights.parts["ip_adapter"][key], text_keys)


def test_pictures_are_dropped_as_often_as_said_and_mirrored_with_the_sample(drawn, tmp_path):
    made = config(
        drawn, tmp_path, stage="ip-adapter", image_encoder="x", image_dropout=0.25,
        data={"horizontal_flip": True},
    )  # fmt: skip
    clips = Clips(list_clips(made), made, None, condition=lambda file, pixels: pixels)
    samples = [clips[number] for number in range(120)]
    dropped = [bool((sample.condition == 0).all()) for sample in samples]
    assert 0.12 < sum(dropped) / len(dropped) < 0.4
    for sample, without in zip(samples, dropped, strict=True):
        assert without or torch.equal(sample.condition, sample.frames[0])


def test_conditions_are_edges_or_pictures_of_the_same_name(tmp_path):
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[8:20, 10:25] = 200
    pixels = torch.from_numpy(picture).permute(2, 0, 1) / 127.5 - 1
    edges = edge_condition(Canny(low=50, high=100))(tmp_path / "a.png", pixels)
    assert torch.equal(edges.permute(1, 2, 0) * 255, torch.from_numpy(canny(picture, 50, 100)))
    write_image(picture, tmp_path / "a.png")
    pair = paired_condition(tmp_path, (16, 16))
    given = pair(tmp_path / "elsewhere" / "a.jpg", pixels)
    assert given.shape == (3, 16, 16)
    assert given.max() == pytest.approx(200 / 255, abs=1e-5)
    assert given.min() == 0
    with pytest.raises(Exception, match=r"has no condition for b.mp4; add b.png"):
        pair(tmp_path / "b.mp4", pixels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": "controlnet"}, "one of canny and condition_folder"),
        ({"stage": "controlnet", "canny": True, "condition_folder": "x"}, "one of canny and"),
        ({"stage": "ip-adapter"}, "image_encoder: is missing"),
        ({"stage": "image", "canny": True}, "canny: belongs to stage controlnet"),
        (
            {"stage": "controlnet", "canny": True, "validation": {"prompts": ["a"]}},
            "leave them out",
        ),  # noqa: E501
        (
            {"stage": "controlnet", "canny": {"low": 9, "high": 1}},
            "canny.high: must be low 9 or more, got 1",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(drawn, tmp_path, changes, message):
    with pytest.raises(TrainingError, match=message):
        config(drawn, tmp_path, **changes)


def test_a_missing_encoder_or_folder_is_named_before_training(drawn, tmp_path):
    made = config(drawn, tmp_path, stage="ip-adapter", image_encoder=str(tmp_path / "none"))
    with pytest.raises(Exception, match="is no folder of an image encoder"):
        list(run(made, tmp_path / "o"))
    made = config(drawn, tmp_path, stage="controlnet", condition_folder=str(tmp_path / "none"))
    with pytest.raises(TrainingError, match="set condition_folder to where"):
        list(run(made, tmp_path / "o"))


def test_checkpointing_covers_the_controlnet_and_changes_no_step(drawn, tmp_path):
    kept, steps = [], []
    for form in ("none", "full"):
        made = config(
            drawn, tmp_path, stage="controlnet", canny=True, gradient_checkpointing=form,
            max_train_steps=1,
        )  # fmt: skip
        (checked,) = run(made, tmp_path / form, dry_run=True)
        kept.append(checked.kept)
        steps.append(next(e for e in run(made, tmp_path / form) if isinstance(e, Step)))
    assert kept[1] < kept[0] / 2.5
    assert steps[1].loss == pytest.approx(steps[0].loss, rel=1e-5)
    assert steps[1].gradient_norm == pytest.approx(steps[0].gradient_norm, rel=1e-3)
