"""Control through the command: what leads a clip, what its sidecar keeps, what is refused."""

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
import yaml
from conftest import TINY, Asked, new_unet, pictures
from control_things import write_things
from diffusers.models import ControlNetModel

from animatediff_core import MotionModule, load_motion_module, save_motion_module

SMALL = {"frames": 4, "width": 32, "height": 32, "steps": 2, "guidance_scale": 1,
         "scheduler": "ddim", "seed": 1, "prompt": "a red circle"}  # fmt: skip
FILM = {"path": "film", "fit": "crop"}
RIGHT = {"path": "right.png", "fit": "stretch"}
JOBS = {
    "free": {},
    "keyframes": {"keyframes": {"images": {0: "film/0.png", -1: "film/5.png"}}},
    "start": {"start": {"images": FILM, "strength": 0.5, "mask": RIGHT}},
    "regions": {"regions": [{"prompt": {0: "a blue star", -1: "a star"}, "mask": RIGHT}]},
    "motion": {"motion_strength": {"scale": 0.8, "blocks": {"mid_block": 0.5}, "frames": {0: 0.2}}},
    "positions": {"motion_positions": {"stretch": 2, "offset": 1}},
    "controlnets": {"controlnets": [{"path": "controlnet", "images": FILM, "canny": {"low": 50},
                                     "strength": 0.7, "start": 0.0, "end": 0.5}]},
    "t2i": {"t2i_adapters": [{"path": "t2i", "images": FILM, "weights": {0: 1, -1: 0.3}}]},
    "sparse": {"sparse_controls": [{"path": "scribble.safetensors", "normalize": True,
                                    "images": {0: "film/0.png", 2: "film/3.png"}}]},
    "ip": {"ip_adapters": [{"path": "ip.safetensors", "encoder": "encoder", "scale": 0.5,
                            "images": {0: "odd.png"}, "weights": {0: 1, -1: 0.2}}]},
    "animate": {"motion": "pia.safetensors", "animate": {"image": "film/0.png",
                                                         "motion": "medium"}},
}  # fmt: skip


@pytest.fixture(scope="module")
def things(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("things")
    write_things(folder)
    ControlNetModel.from_unet(
        new_unet(), conditioning_embedding_out_channels=(8, 8, 16)
    ).save_pretrained(folder / "other")
    tiny = load_motion_module(TINY / "motion_module.safetensors").config
    torch.manual_seed(0)
    module = MotionModule(replace(tiny, version="pia", conv_in_channels=9))
    assert module.conv_in is not None
    torch.nn.init.normal_(module.conv_in.weight, std=0.1)
    save_motion_module(module, folder / "pia.safetensors")
    return folder


def prompt_file(things: Path, jobs: dict[str, dict[str, object]]) -> Path:
    path = things / "jobs.yaml"
    named = [{"name": name, **job} for name, job in jobs.items()]
    path.write_text(yaml.safe_dump({"defaults": SMALL, "jobs": named}))
    return path


def made(asked: Asked, source: Path) -> dict[str, Path]:
    """The clip of each job."""
    run = asked("generate", source, "--json")
    assert run.exit_code == 0, run.stderr
    results = [json.loads(line) for line in run.stdout.splitlines()]
    return {one["name"]: Path(one["path"]) for one in results}


def test_every_field_leads_a_clip_and_the_sidecar_tells_its_files(asked, things):
    clips = made(asked, prompt_file(things, JOBS))
    seen = {name: pictures(path) for name, path in clips.items()}
    assert {len(clip) for clip in seen.values()} == {4}
    assert len({tuple(clip) for clip in seen.values()}) == len(JOBS)

    def sources(name: str) -> dict[str, str]:
        said = yaml.safe_load(clips[name].with_suffix(".yaml").read_text())["made_with"]
        return {one["path"]: one["sha256"] for one in said.get("sources", ())}

    assert sources("free") == {}
    files = {"ip": ("ip.safetensors", "odd.png"), "keyframes": ("film/0.png", "film/5.png"),
             "start": ("right.png",), "regions": ("right.png",), "animate": ("film/0.png",),
             "sparse": ("scribble.safetensors", "film/3.png")}  # fmt: skip
    for name, expected in files.items():
        for file in expected:
            digest = sha256((things / file).read_bytes()).hexdigest()
            assert sources(name)[str(things / file)] == digest
    for name, model in {"controlnets": "controlnet", "t2i": "t2i"}.items():
        assert sources(name).keys() == {str(things / model), str(things / "film")}
    again = made(asked, clips["ip"].with_suffix(".yaml"))
    assert pictures(again["ip"]) == seen["ip"]


def test_a_long_clip_with_a_controlnet_and_a_travelling_prompt_is_one_job(asked, things):
    long = {"frames": 64, "steps": 1, "window": {"length": 16, "overlap": 4},
            "prompt": {0: "a red circle", 63: "a blue circle"}}  # fmt: skip
    net = {"path": "controlnet", "images": {**FILM, "every": 0.08}, "weights": {0: 1, -1: 0}}
    clips = made(asked, prompt_file(things, {"led": {**long, "controlnets": [net]}, "free": long}))
    led, free = (pictures(clips[name]) for name in ("led", "free"))
    assert (len(led), len(free)) == (64, 64)
    assert led[0] != free[0]


def test_fields_are_said_on_the_command_line_too(asked, things):
    said = ("--set", f"keyframes.images={things / 'film' / '0.png'}", "--set",
            "motion_positions=0.5", "--set", f"start.images={things / 'film'}", "--set",
            "start.strength=0.4")  # fmt: skip
    planned = asked("generate", "--prompt", "a", "-L", 4, *said, "--dry-run", "--json")
    assert planned.exit_code == 0, planned.stderr
    job = json.loads(planned.stdout)
    assert job["keyframes"]["images"] == {"0": str(things / "film" / "0.png")}
    assert job["start"] == {"images": {"path": str(things / "film")}, "strength": 0.4}
    assert job["motion_positions"] == {"stretch": 0.5}


NET = {"path": "controlnet", "images": FILM}


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({"controlnets": [NET], "frames": 8}, "has 6 images but the clip needs number 7"),
        ({"controlnets": [{**NET, "images": "film"}]}, "is 64 x 64 pixels but the clip 32 x 32"),
        ({"controlnets": [{**NET, "path": "gone"}]}, "gone"),
        ({"controlnets": [{**NET, "path": "other"}]},
         "is a ControlNet for UNet 32-64 but the base model is UNet 48-96-160"),
        ({"start": {"images": "nowhere.mp4"}}, "nowhere.mp4"),
        ({"keyframes": {"images": {4: "film/0.png"}}}, "names frame 4, but the clip has 4"),
        ({"ip_adapters": [{"path": "ip.safetensors", "encoder": "film", "images": "odd.png"}]},
         "is no folder of an image encoder"),
        ({"regions": [{"prompt": "a", "mask": "odd.png"}]}, "is 50 x 30 pixels"),
        ({"motion_strength": {"blocks": {"middle": 1}}}, "motion_strength.blocks: names middle"),
        ({"motion_positions": 6}, "lower stretch to 5 or less"),
        ({"animate": "film/0.png"}, "animate needs a PIA motion module"),
    ],
)  # fmt: skip
def test_bad_conditions_end_with_one_sentence_before_anything_is_loaded(
    asked, monkeypatch, tmp_path, things, job, message
):
    load = "animatediff_core.runs.generate.load_model"
    monkeypatch.setattr(load, lambda *_, **__: pytest.fail("load"))
    refused = asked("generate", prompt_file(things, {"bad": job}))
    assert refused.exit_code == 2
    assert refused.stdout == ""
    said = " ".join(refused.stderr.split())
    assert message in said
    assert said.count("rror:") == 1
    assert not (tmp_path / "outputs").exists()
