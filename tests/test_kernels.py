"""Kernels for CUDA give the plain operations' numbers: on the CPU, by Triton's interpreter."""

import pytest
import torch
from conftest import new_motion, new_unet
from test_speed import farthest, frozen, inputs
from torch import nn

import animatediff_core as ad
from animatediff_core.speed import optimizer, plain_ops, restore

pytest.importorskip("triton")
from animatediff_core.speed import kernels, norm_kernels  # noqa: E402

NEAR = {torch.float32: 1e-5, torch.float16: 4e-3}
HEIGHT, WIDTH, CHANNELS = 9, 16, 24
"""144 pixels: more than one block of rows, and no whole number of them."""


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def layers() -> tuple[nn.GroupNorm, nn.LayerNorm, nn.Linear, nn.Conv2d]:
    torch.manual_seed(2)
    made = (
        nn.GroupNorm(4, CHANNELS), nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, 20),
        nn.Conv2d(CHANNELS, 20, 1),
    )  # fmt: skip
    for layer in made:
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
    return made


ROWS = 2 * HEIGHT * WIDTH
NORM, LAYER, LINEAR, POINT = layers()
IMAGES = draw(2, HEIGHT, WIDTH, CHANNELS).permute(0, 3, 1, 2)
SEQUENCES = draw(2 * 5 * 6, 3 * CHANNELS)  # 2 clips of 5 frames of 6 pixels
CASES = {
    "group norm": ("group_norm", [IMAGES, NORM], {}),
    "group norm, silu, bias": ("group_norm", [IMAGES, NORM],
                               {"silu": True, "bias": draw(2, CHANNELS)}),
    "group norm, one bias": ("group_norm", [IMAGES, NORM], {"bias": draw(1, CHANNELS)}),
    "layer norm": ("layer_norm", [draw(ROWS, CHANNELS), LAYER], {}),
    "layer norm, positions": ("layer_norm", [draw(60, CHANNELS), LAYER, draw(5, CHANNELS), 6], {}),
    "gate": ("gate", [draw(ROWS, CHANNELS)], {}),
    "add": ("add", [draw(37, CHANNELS), None, draw(37, CHANNELS) / 3], {}),
    "add, bias": ("add", [draw(37, CHANNELS), draw(CHANNELS), draw(37, CHANNELS) / 3], {}),
    "linear, strength": ("linear_add", [LINEAR, draw(37, CHANNELS), draw(37, 20), 0.3], {}),
    "pixels": ("linear_add", [POINT, draw(37, CHANNELS), draw(37, 20)], {}),
    "frames": ("attend_frames", [SEQUENCES, 5, 6, 3], {}),
    "frames, wide heads": ("attend_frames", [SEQUENCES, 5, 6, 1], {}),
    "one frame": ("attend_frames", [SEQUENCES, 1, 30, 4], {}),
}  # fmt: skip


def cast(value: object, dtype: torch.dtype) -> object:
    if isinstance(value, nn.Module):
        made = layers()[[NORM, LAYER, LINEAR, POINT].index(value)]
        return made.to(dtype)
    return value.to(dtype, copy=True) if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_a_kernel_gives_the_numbers_of_the_plain_operation(case, dtype):
    name, given, named = CASES[case]
    outs = [
        getattr(side, name)(
            *(cast(one, kind) for one in given),
            **{key: cast(one, kind) for key, one in named.items()},
        )
        for side, kind in ((kernels, dtype), (plain_ops, torch.float32))
    ]
    assert outs[0].dtype == dtype
    torch.testing.assert_close(outs[0].float(), outs[1], atol=NEAR[dtype], rtol=NEAR[dtype])


@pytest.fixture
def fused(monkeypatch):
    """A model that runs by the kernels, and the same model plain."""
    monkeypatch.setattr(optimizer, "has_kernels", lambda device: True)
    monkeypatch.setattr(norm_kernels, "_COLUMNS", 32)
    sides = []
    for _ in range(2):
        torch.manual_seed(4)
        unet, motion = frozen(new_unet()), new_motion(resnet_norm="clip")
        for parameter in (*unet.parameters(), *motion.parameters()):
            if parameter.ndim == 1:  # biases and scales that differ from 0 and 1
                nn.init.normal_(parameter, 0.5, 0.2)
        sides.append(ad.inflate(unet, motion.requires_grad_(False)))
    return ad.optimize(sides[1]), sides[0]


def test_a_model_of_kernels_is_the_plain_model(fused):
    fast, plain = fused
    given = inputs(batch=1, frames=2, height=4, width=6)
    assert 0 < farthest(plain, fast, *given) < 2e-5
    restore(fast)
    assert farthest(plain, fast, *given) == 0
    for one, other in zip(plain.parameters(), fast.parameters(), strict=True):
        assert one.untyped_storage().nbytes() == other.untyped_storage().nbytes()
