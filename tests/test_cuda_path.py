"""The forwards for CUDA give the plain numbers: here on the CPU, by Triton's interpreter."""

import pytest
import torch
from conftest import new_motion, new_unet
from test_speed import farthest, frozen, inputs

import animatediff_core as ad
from animatediff_core.motion import Conditions, Positions
from animatediff_core.speed import optimizer, restore

pytest.importorskip("triton")
NEAR = 2e-5


@pytest.fixture(autouse=True)
def kernels_everywhere(monkeypatch):
    monkeypatch.setattr(optimizer, "has_kernels", lambda device: True)


def pair(channels=(32, 64), **changes):
    """The same model twice: plain, with the kernels."""
    sides = []
    for _ in range(2):
        torch.manual_seed(4)
        unet = frozen(new_unet(channels))
        motion = new_motion(channels, **changes)
        for parameter in (*unet.parameters(), *motion.parameters()):
            if parameter.ndim == 1:  # biases and scales that differ from 0 and 1
                torch.nn.init.normal_(parameter, 0.5, 0.2)
        sides.append(ad.inflate(unet, motion.requires_grad_(False)))
    return sides[0], ad.optimize(sides[1])


@pytest.mark.parametrize(
    ("changes", "given"),
    [
        ({}, {"travel": True, "batch": 1}),
        ({"frame_norm": "clip"}, {"height": 6, "width": 5, "batch": 1}),
        ({"resnet_norm": "clip", "mid_block": False}, {"frames": 5, "batch": 1}),
        ({"resnet_norm": "clip", "frame_norm": "clip"}, {"batch": 2, "height": 4, "width": 6}),
    ],
)
def test_numbers_are_the_plain_ones(changes, given):
    plain, fast = pair(**changes)
    assert farthest(plain, fast, *inputs(**given)) < NEAR


def test_motion_strength_and_residuals():
    plain, fast = pair()
    sample, time, text = inputs()
    conditions = Conditions(
        motion_strength=0.3,
        motion_positions=Positions(stretch=0.5, offset=1),
        mid_residual=torch.randn(6, 64, 4, 4, generator=torch.Generator().manual_seed(1)),
    )
    assert farthest(plain, fast, sample, time, text, conditions) < NEAR


def test_a_layer_with_a_hook_runs_as_it_is():
    plain, fast = pair()
    given = inputs(batch=1, height=4, width=4)
    before = farthest(plain, fast, *given)
    for side in (plain, fast):
        for module in side.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(lambda layer, inputs, output: output * 1.5)
    assert farthest(plain, fast, *given) < NEAR
    assert before < NEAR


def test_restored_it_is_the_plain_model_to_the_bit():
    plain, fast = pair()
    restore(fast)
    assert farthest(plain, fast, *inputs(batch=1)) == 0
    for one, other in zip(plain.parameters(), fast.parameters(), strict=True):
        assert one.untyped_storage().nbytes() == other.untyped_storage().nbytes()


def test_a_gradient_is_the_plain_one():
    plain, fast = pair()
    gradients = []
    for side in (plain, fast):
        sample, time, text = inputs(batch=1)
        text.requires_grad_(True)
        side(sample, time, text).square().mean().backward()
        gradients.append(text.grad)
    assert (gradients[0] - gradients[1]).abs().max() < 1e-6
