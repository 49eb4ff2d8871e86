"""Stage `motion-lora`: low-rank layers of a motion module, from clips or from images that move."""

import numpy as np
import pytest
import torch
from conftest import TINY
from safetensors.torch import load_file
from test_train import config

from animatediff_core import apply_motion_lora, inflate, load_motion_module
from animatediff_core.adapters.identify import identify
from animatediff_core.checkpoints.loading import load_base
from animatediff_core.errors import AnimateDiffError
from animatediff_core.jobs.camera import Move
from animatediff_core.media.image import write_image
from animatediff_core.runs.train import run
from animatediff_core.training.camera_clips import camera_clip

MOTION = str(TINY / "motion_module.safetensors")
DIRECTIONS = {
    "zoom-in": "outwards", "zoom-out": "inwards", "pan-left": "right", "pan-right": "left",
    "tilt-up": "down", "tilt-down": "up", "roll-clockwise": "clockwise",
    "roll-anticlockwise": "anticlockwise",
}  # fmt: skip
"""How a dot above and left of the middle moves in the picture."""


def dot(frame: torch.Tensor) -> tuple[float, float]:
    """The place of a white dot, 3 h w: (across, down) from the middle."""
    weight = (frame.mean(0) + 1).clamp(min=0)
    weight[weight < 0.5] = 0
    height, width = weight.shape
    across = (weight.sum(0) * torch.arange(width)).sum() / weight.sum() - (width - 1) / 2
    down = (weight.sum(1) * torch.arange(height)).sum() / weight.sum() - (height - 1) / 2
    return float(across), float(down)


@pytest.mark.parametrize("move", Move.__args__)
def test_a_camera_moves_over_an_image_as_its_name_says(move):
    image = np.zeros((96, 144, 3), np.uint8)
    image[34:40, 54:60] = 255  # 15 left and 11 above the middle of 96 x 144
    clip = camera_clip(image, move, 5, (48, 72))
    assert clip.shape == (5, 3, 48, 72)
    (x, y), (later_x, later_y) = dot(clip[0]), dot(clip[-1])
    turned = x * later_y - y * later_x  # above 0: clockwise, as rows count downwards
    nearer = np.hypot(later_x, later_y) / np.hypot(x, y)
    seen = {
        "outwards": min(later_x / x, later_y / y) > 1.4,
        "inwards": max(later_x / x, later_y / y) < 0.7, "right": later_x - x > 15,
        "left": x - later_x > 15, "down": later_y - y > 10, "up": y - later_y > 10,
        "clockwise": turned > 20 and abs(nearer - 1) < 0.1,
        "anticlockwise": turned < -20 and abs(nearer - 1) < 0.1,
    }  # fmt: skip
    assert [name for name, is_so in seen.items() if is_so] == [DIRECTIONS[move]]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(1)
    for number in range(2):
        write_image(rng.integers(0, 255, (40, 56, 3), np.uint8), folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a red circle")
    return folder


def trained(images, tmp_path, **changes):
    data = {
        "video_folder": str(images),
        "csv_path": None,
        "camera": "zoom-in",
        "sample_n_frames": 3,
    }
    made = config(
        images, tmp_path, stage="motion-lora", motion=MOTION, lora_rank=4, max_train_steps=3,
        learning_rate=0.02, weight_decay=0.0, data=data | {"sample_n_frames": 3}, **changes,
    )  # fmt: skip
    *_, written = run(made, tmp_path / "o")
    return written.path


def test_the_file_is_a_motion_lora_of_official_keys_that_acts(images, tmp_path):
    path = trained(images, tmp_path)
    assert path.name == "motion_lora.safetensors"
    tensors = load_file(path)
    site = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0"
    key = f"{site}.attention_blocks.1.processor.to_out_lora"
    assert tensors[f"{key}.down.weight"].shape == (4, 48)
    assert tensors[f"{key}.up.weight"].shape == (48, 4)
    assert all("_lora." in name and ".processor.to_" in name for name in tensors)
    report = identify(path)
    assert (report.kind, report.goes_in) == ("MotionLoRA", "motion_loras")

    def predicted(scale: float) -> torch.Tensor:
        base, motion = load_base(str(TINY / "base")), load_motion_module(MOTION)
        assert apply_motion_lora(motion, path, scale) == len(tensors) // 2
        x = torch.randn(1, 4, 3, 4, 8, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            return inflate(base.unet, motion)(x, 300, torch.zeros(1, 32, 128))

    plain = predicted(0.0)
    assert (predicted(1.0) - plain).abs().max() > 1e-3
    assert (predicted(-1.0) - plain).abs().max() > 1e-3


def test_feed_forward_layers_are_trained_if_asked_for(images, tmp_path):
    tensors = load_file(trained(images, tmp_path, lora_feed_forward=True))
    site = "mid_block.motion_modules.0.temporal_transformer.transformer_blocks.0"
    assert tensors[f"{site}.ff.net.2_lora.up.weight"].abs().sum() > 0
    assert apply_motion_lora(load_motion_module(MOTION), tmp_path / "o" / "motion_lora.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"motion": None}, "motion: is missing"),
        ({"stage": "lora", "motion": None, "data": {"camera": "zoom-in"}}, "camera: makes clips"),
        ({"data": {"camera": "zoom-in", "cache_folder": "x"}}, "cache_folder: keeps no clips"),
        ({"stage": "motion", "lora_rank": 4}, "lora_rank: belongs to stage lora and motion-lora"),
    ],
)
def test_settings_that_do_not_go_together_are_rejected(images, tmp_path, changes, message):
    settings = {"stage": "motion-lora", "motion": MOTION} | changes
    with pytest.raises(AnimateDiffError, match=message):
        config(images, tmp_path, **settings)
