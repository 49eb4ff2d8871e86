"""Blocks that run again in the backward: the same gradients from far fewer kept activations."""

import pytest
import torch
from conftest import new_motion, new_unet

import animatediff_core as ad
from animatediff_core.motion import Conditions, Positions
from animatediff_core.training.checkpointing import counting_kept, recompute_blocks


def gradients(model, parameters, *arguments):
    """By parameter, with what the graph kept."""
    for one in parameters:
        one.grad = None
    with counting_kept(model.parameters()) as kept:
        out = model(*arguments)
        out = out if isinstance(out, torch.Tensor) else out.sample
        loss = out.square().mean()
    loss.backward()
    return [one.grad.clone() for one in parameters], kept.num_bytes


def inputs(frames=4):
    generator = torch.Generator().manual_seed(3)
    sample = torch.randn(2, 4, frames, 8, 8, generator=generator)
    return sample, torch.tensor([10, 900]), torch.randn(2, 5, 16, generator=generator)


@pytest.mark.parametrize("changes", [{}, {"resnet_norm": "clip", "frame_norm": "clip"}])
def test_gradients_of_the_motion_module_are_the_same_and_little_is_kept(changes):
    unet = new_unet().requires_grad_(False)
    animated = ad.inflate(unet, new_motion(**changes).requires_grad_(True))
    conditions = Conditions(
        motion_strength=0.7, motion_blocks={"up_blocks.0": 0.5},
        motion_frames=torch.linspace(0.2, 1, 4), motion_positions=Positions(stretch=0.5),
    )  # fmt: skip
    parameters = list(animated.motion.parameters())
    wanted, all_kept = gradients(animated, parameters, *inputs(), conditions)
    undo = recompute_blocks(animated)
    found, kept = gradients(animated, parameters, *inputs(), conditions)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    assert kept < all_kept / 10
    undo()
    assert gradients(animated, parameters, *inputs(), conditions)[1] == all_kept


def test_two_calls_of_different_lengths_before_one_backward():
    animated = ad.inflate(
        new_unet().requires_grad_(False), new_motion(resnet_norm="clip").requires_grad_(True)
    )
    parameters = list(animated.motion.parameters())

    def both():
        for one in parameters:
            one.grad = None
        losses = [animated(*inputs(frames)).square().mean() for frames in (2, 4)]
        sum(losses).backward()
        return [one.grad.clone() for one in parameters]

    wanted = both()
    recompute_blocks(animated)
    for one, other in zip(both(), wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    animated.deflate()
    assert not any("forward" in vars(module) for module in animated.modules())


def test_the_image_stages_unet_learns_the_same():
    unet = new_unet().train()
    parameters = list(unet.parameters())
    sample, time, text = inputs()
    given = sample[:, :, 0], time, text
    wanted, all_kept = gradients(unet, parameters, *given)
    recompute_blocks(unet)
    found, kept = gradients(unet, parameters, *given)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    assert kept < all_kept / 4
