"""Jobs that are led by pictures: prompt file to frames, and what planning refuses."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY
from control_things import FRAMES, write_things
from PIL import Image

from animatediff_core import MotionModule, load_motion_module, save_motion_module
from animatediff_core.diffusion.pia_mask import pia_mask
from animatediff_core.errors import AnimateDiffError
from animatediff_core.jobs import load_prompt_file
from animatediff_core.planning.jobs import plan
from animatediff_core.runs.generate import Loading, Result, run


@pytest.fixture(scope="module")
def things(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("things")
    write_things(folder)
    return folder


ALL = {
    "controlnets": [{"path": "controlnet", "images": "film", "canny": True, "strength": 0.7,
                     "end": 0.5, "weights": {0: 1.0, -1: 0.0}}],
    "t2i_adapters": [{"path": "t2i", "images": "film", "canny": True,
                      "weights": {0: 1.0, 3: 0.5}}],
    "sparse_controls": [{"path": "scribble.safetensors", "images": {0: "film/0.png"},
                         "normalize": True}],
    "ip_adapters": [{"path": "ip.safetensors", "encoder": "encoder", "scale": 0.5,
                     "images": {0: "film/0.png", -1: "odd.png"}, "weights": {0: 1.0, -1: 0.2},
                     "mask": "right.png"}],
    "start": {"images": "film", "strength": 0.7, "mask": "right.png"},
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
    keyframes = {"images": {0: "film/0.png"}}
    job = {**ALL, "keyframes": keyframes, "window": {"length": 4, "overlap": 2},
           "upscale": {"scale": 1.25, "strength": 0.5}}  # fmt: skip
    (clip,) = clips(prompt_file(things, job), tmp_path)
    assert clip.shape == (FRAMES, 80, 80, 3)
    first = np.asarray(Image.open(things / "film" / "0.png").resize((80, 80)))
    error = ((clip[0].astype(float) - first) ** 2).mean()
    assert 10 * np.log10(255**2 / error) > 20


def test_an_image_becomes_the_first_frame(things, tmp_path):
    jobs = [{"keyframes": {"images": {0: "film/0.png"}, "strength": s}} for s in (1.0, 0.5)]
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
             "animate": {"image": "film/0.png", "motion": amount}}
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
    assert torch.allclose(pia_mask(amount, frames), torch.tensor(likeness))


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({"controlnets": [{"path": "gone", "images": "film"}]}, "gone"),
        ({"controlnets": [{"path": "scribble.safetensors", "images": "film"}]},
         "is a SparseCtrl, which goes into sparse_controls"),
        ({"sparse_controls": [{"path": "controlnet", "images": {0: "film/0.png"}}]},
         "is a ControlNet, which goes into controlnets"),
        ({"controlnets": [{"path": "controlnet", "images": "nowhere"}]}, "nowhere"),
        ({"controlnets": [{"path": "t2i", "images": "film"}]},
         "is a T2I-Adapter, which goes into t2i_adapters, not into controlnets"),
        ({"t2i_adapters": [{"path": "controlnet", "images": "film"}]},
         "is a ControlNet, which goes into controlnets, not into t2i_adapters"),
        ({"t2i_adapters": [{"path": "two-levels", "images": "film"}]},
         "adds 48, 96 channels to the levels. than this one, UNet 48-96-160"),
        ({"t2i_adapters": [{"path": "t2i", "images": "film", "weights": {6: 1}}]},
         "weights: names frame 6, but the clip has 6"),
        ({"controlnets": [{"path": "controlnet", "images": "film"}], "frames": 8},
         "has 6 images but the clip needs number 7"),
        ({"controlnets": [{"path": "controlnet", "images": "odd.png"}]},
         "is 50 x 30 pixels but the clip 64 x 64"),
        ({"keyframes": {"images": {9: "film/0.png"}}}, "names frame 9, but the clip has 6"),
        ({"animate": "film/0.png"}, "animate needs a PIA motion module"),
        ({"start": {"images": "film"}, "free_init": True}, "free_init begins from noise alone"),
        ({"ip_adapters": [{**ALL["ip_adapters"][0], "path": "scribble.safetensors"}]},
         "is a SparseCtrl, which goes into sparse_controls, not into ip_adapters"),
        ({"ip_adapters": [{**ALL["ip_adapters"][0], "encoder": "film"}]}, "image encoder"),
        ({"ip_adapters": [{**ALL["ip_adapters"][0], "weights": {-7: 1.0}}]},
         "weights: names frame -7, but the clip has 6"),
        ({"motion_positions": {"stretch": 4.5, "offset": 1}},
         r"motion_positions: reaches 23.5 with 6 frames .* 0 to 15; lower stretch to 2.8 or less$"),
        ({"motion_positions": {"stretch": 2, "offset": 6}},
         "lower stretch to 1.8 or less, or offset to 5 or less"),
        ({"motion_positions": 4, "window": {"length": 5}, "frames": 9},
         "motion_positions: reaches 16 with 5 frames together, .* lower stretch to 3.75 or less$"),
    ],
)  # fmt: skip
def test_planning_refuses_what_cannot_lead_the_clip(things, job, message):
    with pytest.raises(AnimateDiffError, match=message):
        plan(load_prompt_file(prompt_file(things, job)), offline=True)
