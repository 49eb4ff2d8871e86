"""Jobs that are led by pictures: prompt file to frames, and what planning refuses."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY
from diffusers.models import ControlNetModel, UNet2DConditionModel
from diffusers.models.adapter import T2IAdapter
from PIL import Image
from safetensors.torch import save_file
from transformers.models.clip import CLIPVisionConfig, CLIPVisionModelWithProjection

from animatediff_core import MotionModule, load_motion_module, save_motion_module
from animatediff_core.diffusion.picture_likeness import picture_likeness
from animatediff_core.errors import AnimateDiffError
from animatediff_core.jobs import load_prompt_file
from animatediff_core.motion import MotionConfig
from animatediff_core.motion.sparse_control import SparseControlNet
from animatediff_core.runs.generate import Loading, Result, run
from animatediff_core.runs.planning import plan
from animatediff_core.tiny.renderer import render
from animatediff_core.tiny.world import draw_scene, poses

FRAMES = 6


@pytest.fixture(scope="module")
def things(tmp_path_factory) -> Path:
    """A film of the tiny world and a random control model of every kind for the tiny base."""
    folder = tmp_path_factory.mktemp("things")
    rng = random.Random(1)
    scene = draw_scene(rng, motion="moving right")
    film = render(scene, poses(scene, rng, FRAMES)).permute(0, 2, 3, 1).mul(255).byte().numpy()
    (folder / "film").mkdir()
    for number, picture in enumerate(film):
        Image.fromarray(picture).save(folder / "film" / f"{number}.png")
    mask = np.zeros((64, 64, 3), np.uint8)
    mask[:, 32:] = 255
    Image.fromarray(mask).save(folder / "right.png")
    Image.new("RGB", (50, 30)).save(folder / "odd.png")
    _write_models(folder)
    return folder


def _write_models(folder: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(TINY / "base" / "unet")
    torch.manual_seed(0)
    control = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 16))
    sparse = SparseControlNet(
        unet,
        MotionConfig(
            block_out_channels=tuple(unet.config.block_out_channels),
            layers_per_block=unet.config.layers_per_block,
            norm_num_groups=unet.config.norm_num_groups,
        ),
        "pictures",
        (8, 8, 16),
    )
    for model in (control, sparse):
        for name, parameter in model.named_parameters():
            if "controlnet_" in name or "proj_out" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    control.save_pretrained(folder / "controlnet")
    levels = list(unet.config.block_out_channels)
    T2IAdapter(1, levels, 1, 4).save_pretrained(folder / "t2i")
    T2IAdapter(1, levels[:2], 1, 4).save_pretrained(folder / "two-levels")
    names = {key.removeprefix("controlnet."): t for key, t in sparse.state_dict().items()}
    save_file({k: t.contiguous() for k, t in names.items()}, folder / "scribble.safetensors")
    width = unet.config.cross_attention_dim
    tensors = {"image_proj.proj.weight": torch.randn(4 * width, 16) * 0.1,
               "image_proj.proj.bias": torch.zeros(4 * width),
               "image_proj.norm.weight": torch.ones(width),
               "image_proj.norm.bias": torch.zeros(width)}  # fmt: skip
    layers = [n for n in unet.attn_processors if not n.endswith("attn1.processor")]
    for number, name in enumerate(layers):
        out = unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape[0]
        for kind in ("k", "v"):
            tensors[f"ip_adapter.{2 * number + 1}.to_{kind}_ip.weight"] = torch.randn(out, width)
    save_file(tensors, folder / "ip.safetensors")
    config = CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                              num_attention_heads=2, image_size=16, patch_size=8,
                              projection_dim=16)  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "encoder")


ALL = {
    "controlnets": [{"path": "controlnet", "pictures": "film", "canny": True, "strength": 0.7,
                     "end": 0.5, "weights": {0: 1.0, -1: 0.0}}],
    "t2i_adapters": [{"path": "t2i", "pictures": "film", "canny": True,
                      "weights": {0: 1.0, 3: 0.5}}],
    "sparse_controls": [{"path": "scribble.safetensors", "pictures": {0: "film/0.png"},
                         "normalize": True}],
    "ip_adapters": [{"path": "ip.safetensors", "encoder": "encoder", "scale": 0.5,
                     "pictures": {0: "film/0.png", -1: "odd.png"}, "weights": {0: 1.0, -1: 0.2}}],
    "start": {"pictures": "film", "strength": 0.7, "mask": "right.png"},
    "regions": [{"prompt": "a blue star", "mask": "right.png"}],
    "motion_positions": {"stretch": 0.5, "offset": 2},
}  # fmt: skip


def prompt_file(things: Path, *jobs: dict[str, object], **defaults: object) -> Path:
    """A prompt file in the folder of the things, with small settings."""
    settings = {"frames": FRAMES, "width": 64, "height": 64, "steps": 2, "scheduler": "ddim"}
    content = {
        "defaults": {**settings, **defaults},
        "jobs": [{"prompt": "a red circle", "seed": 1, **job} for job in jobs],
    }
    path = things / "jobs.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def clips(path: Path, folder: Path) -> list[np.ndarray]:
    events = list(run(load_prompt_file(path), output_dir=folder, device="cpu", offline=True))
    assert sum(isinstance(event, Loading) for event in events) == 1
    results = [event for event in events if isinstance(event, Result)]
    for result in results:
        assert result.error is None, result.error
    return [np.asarray(result.frames) for result in results]


def test_each_kind_leads_the_clip_and_the_next_job_is_free_again(things, tmp_path):
    usual = {"motion_positions": {"stretch": 1, "offset": 0}}
    jobs = [{}, *({key: value} for key, value in ALL.items()), usual]
    free, *led, after = clips(prompt_file(things, *jobs, frames=4), tmp_path)
    assert np.array_equal(free, after)
    for key, clip in zip(ALL, led, strict=True):
        assert clip.shape == free.shape
        assert not np.array_equal(clip, free), key
    film = np.stack(
        [np.asarray(Image.open(f)) for f in sorted((things / "film").glob("*.png"))[:4]]
    )
    start = led[list(ALL).index("start")]
    kept = ((start[:, :, :28].astype(float) - film[:, :, :28]) ** 2).mean()
    assert 10 * np.log10(255**2 / kept) > 25
    region = led[list(ALL).index("regions")]
    assert np.abs(region - free.astype(float))[:, :, 40:].mean() > 0.5


def test_all_together_through_windows_and_a_second_pass(things, tmp_path):
    keyframes = {"pictures": {0: "film/0.png"}}
    job = {**ALL, "keyframes": keyframes, "window": {"length": 4, "overlap": 2},
           "upscale": {"scale": 1.25, "strength": 0.5}}  # fmt: skip
    (clip,) = clips(prompt_file(things, job), tmp_path)
    assert clip.shape == (FRAMES, 80, 80, 3)
    first = np.asarray(Image.open(things / "film" / "0.png").resize((80, 80)))
    error = ((clip[0].astype(float) - first) ** 2).mean()
    assert 10 * np.log10(255**2 / error) > 20


def test_an_image_becomes_the_first_frame(things, tmp_path):
    jobs = [{"keyframes": {"pictures": {0: "film/0.png"}, "strength": s}} for s in (1.0, 0.5)]
    for clip in clips(prompt_file(things, *jobs, frames=3), tmp_path):
        first = np.asarray(Image.open(things / "film" / "0.png"))
        error = ((clip[0].astype(float) - first) ** 2).mean()
        assert 10 * np.log10(255**2 / error) > 25


def test_a_pia_module_animates_a_picture(things, tmp_path):
    config = replace(
        load_motion_module(TINY / "motion_module.safetensors").config,
        version="pia", conv_in_channels=9,
    )  # fmt: skip
    module = MotionModule(config)
    torch.nn.init.normal_(module.conv_in.weight, std=0.1)
    save_motion_module(module, things / "pia.safetensors")
    jobs = [{"motion": "pia.safetensors", "steps": 1,
             "animate": {"picture": "film/0.png", "motion": amount}}
            for amount in ("small", "large")]  # fmt: skip
    small, large = clips(prompt_file(things, *jobs), tmp_path)
    assert not np.array_equal(small, large)
    with pytest.raises(AnimateDiffError, match="is a PIA module, .* name it with animate"):
        plan(load_prompt_file(prompt_file(things, {"motion": "pia.safetensors"})), offline=True)


@pytest.mark.parametrize(
    ("amount", "frames", "likeness"),
    [
        ("small", 8, [1.0, 0.9, 0.85, 0.85, 0.85, 0.8, 0.8, 0.8]),
        ("loop", 6, [1.0, 0.9, 0.85, 0.85, 0.9, 1.0]),
    ],
)
def test_likeness_to_the_picture_falls_or_returns(amount, frames, likeness):
    assert torch.allclose(picture_likeness(amount, frames), torch.tensor(likeness))


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({"controlnets": [{"path": "gone", "pictures": "film"}]}, "gone"),
        ({"controlnets": [{"path": "scribble.safetensors", "pictures": "film"}]},
         "is a SparseCtrl, which goes into sparse_controls"),
        ({"sparse_controls": [{"path": "controlnet", "pictures": {0: "film/0.png"}}]},
         "is a ControlNet, which goes into controlnets"),
        ({"controlnets": [{"path": "controlnet", "pictures": "nowhere"}]}, "nowhere"),
        ({"controlnets": [{"path": "t2i", "pictures": "film"}]},
         "is a T2I-Adapter, which goes into t2i_adapters, not into controlnets"),
        ({"t2i_adapters": [{"path": "controlnet", "pictures": "film"}]},
         "is a ControlNet, which goes into controlnets, not into t2i_adapters"),
        ({"t2i_adapters": [{"path": "two-levels", "pictures": "film"}]},
         "adds 48, 96 channels to the levels. than this one, levels 48, 96, 160"),
        ({"t2i_adapters": [{"path": "t2i", "pictures": "film", "weights": {6: 1}}]},
         "t2i_adapters.weights names frame 6"),
        ({"controlnets": [{"path": "controlnet", "pictures": "film"}], "frames": 8},
         "has 6 pictures but the clip needs number 7"),
        ({"controlnets": [{"path": "controlnet", "pictures": "odd.png"}]},
         "is 50 x 30 pixels but the clip 64 x 64"),
        ({"keyframes": {"pictures": {9: "film/0.png"}}}, "names frame 9, but the clip has 6"),
        ({"animate": "film/0.png"}, "animate needs a PIA motion module"),
        ({"start": {"pictures": "film"}, "free_init": True}, "free_init begins from noise alone"),
        ({"ip_adapters": [{**ALL["ip_adapters"][0], "path": "scribble.safetensors"}]},
         "is a SparseCtrl, which goes into sparse_controls, not into ip_adapters"),
        ({"ip_adapters": [{**ALL["ip_adapters"][0], "encoder": "film"}]}, "image encoder"),
        ({"ip_adapters": [{**ALL["ip_adapters"][0], "weights": {-7: 1.0}}]},
         "ip_adapters.weights names frame -7, but the clip has 6"),
        ({"motion_positions": {"stretch": 4.5, "offset": 1}},
         r"reach 23.5 with 6 frames .* positions 0 to 15; lower stretch to 2.8 or less$"),
        ({"motion_positions": {"stretch": 2, "offset": 6}},
         "lower stretch to 1.8 or less, or offset to 5 or less"),
        ({"motion_positions": 4, "window": {"length": 5}, "frames": 9},
         "reach 16 with 5 frames together, .* lower stretch to 3.75 or less$"),
    ],
)  # fmt: skip
def test_planning_refuses_what_cannot_lead_the_clip(things, job, message):
    with pytest.raises(AnimateDiffError, match=message):
        plan(load_prompt_file(prompt_file(things, job)), offline=True)
