"""Camera moves by name: the same as their MotionLoRAs, and refused where those do not fit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from conftest import TINY, pictures
from safetensors.torch import save_file

from animatediff_core import MotionModule, load_motion_module, save_motion_module
from animatediff_core.jobs import load_prompt_file
from animatediff_core.planning.jobs import spec_of
from animatediff_core.planning.models import find_model

FAST = ("--steps", 1, "-L", 2, "-W", 16, "-H", 16, "--seed", 1)


@pytest.fixture
def loras(tmp_path) -> Path:
    """A folder with one of the eight files, made for the tiny module."""
    folder = tmp_path / "loras"
    folder.mkdir()
    motion = load_motion_module(TINY / "motion_module.safetensors")
    torch.manual_seed(0)
    tensors = {}
    for key, weight in motion.state_dict().items():
        if key.endswith("to_q.weight"):
            stem = key.removesuffix("to_q.weight") + "processor.to_q_lora"
            tensors[f"{stem}.up.weight"] = torch.randn(weight.shape[0], 2)
            tensors[f"{stem}.down.weight"] = torch.randn(2, weight.shape[1])
    save_file(tensors, folder / "v2_lora_ZoomIn.safetensors")
    return folder


def test_a_move_is_its_motion_lora(asked, tmp_path, loras):
    def made(*options: object) -> list[bytes]:
        run = asked("generate", "--prompt", "a red circle", *FAST, "-o", "out", "--json", *options)
        assert run.exit_code == 0, run.stderr
        clip = tmp_path / json.loads(run.stdout)["path"]
        sidecars.append(yaml.safe_load(clip.with_suffix(".yaml").read_text()))
        return pictures(clip)

    sidecars: list[dict] = []
    move = made("--camera", "zoom-in:0.5", "--set", f"camera.folder={loras}")
    lora = made("--motion-lora", f"{loras / 'v2_lora_ZoomIn.safetensors'}:0.5")
    assert move == lora
    assert move != made()
    said = sidecars[0]["jobs"][0]["camera"]
    assert said == {"moves": [{"move": "zoom-in", "scale": 0.5}], "folder": str(loras)}


def test_moves_of_a_prompt_file_come_from_the_hub_where_no_folder_is_named(tmp_path, loras):
    path = tmp_path / "jobs.yaml"
    path.write_text(
        "camera: {folder: loras}\n"
        "jobs: [{prompt: a, camera: zoom-in}, {prompt: a, camera: [{move: zoom-in, scale: 2}]}]"
    )
    for job, scale in zip(load_prompt_file(path), (1, 2), strict=True):
        (adapter,) = find_model(spec_of(job), offline=True).spec.motion_loras
        assert (adapter.path, adapter.scale) == (str(loras / "v2_lora_ZoomIn.safetensors"), scale)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--camera", "zoom"], "must be zoom-in, zoom-out, pan-left"),
        (["--camera", "pan-left", "--set", "camera.folder=loras"],
         "loras: has no v2_lora_PanLeft.ckpt (or .safetensors), the MotionLoRA of pan-left"),
        (["--camera", "tilt-up", "--offline"], "guoyww/animatediff/v2_lora_TiltUp.ckpt"),
        (["--camera", "zoom-in", "--base", "bundled:tiny", "--motion", "v3.safetensors",
          "--set", "camera.folder=loras"],
         "MotionLoRAs for v2 motion modules, but v3.safetensors is v3"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(asked, tmp_path, loras, options, message):
    if "v3.safetensors" in options:
        tiny = load_motion_module(TINY / "motion_module.safetensors").config
        module = MotionModule(replace(tiny, version="v3", mid_block=False))
        save_motion_module(module, tmp_path / "v3.safetensors")
    refused = asked("generate", "--prompt", "a", *FAST, *options)
    assert refused.exit_code in (2, 3)
    assert message in " ".join(refused.stderr.split())
    assert not (tmp_path / "outputs").exists()
