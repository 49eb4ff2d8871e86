"""The faster training step gives the plain one's gradients."""

import pytest
import torch
from conftest import new_motion, new_unet

import animatediff_core as ad
from animatediff_core.speed import training, winograd
from animatediff_core.speed.checkpointing import recompute_blocks
from animatediff_core.speed.training import quicken_training


@pytest.fixture(params=["mkl", "onednn"], autouse=True)
def library(request, monkeypatch):
    """What multiplies matrices, whichever processor this is."""
    monkeypatch.setattr(training, "_suits_mkl", lambda: request.param == "mkl")
    return request.param


def animated_model():
    return ad.inflate(new_unet().requires_grad_(False), new_motion().requires_grad_(True))


def inputs(per_frame=False):
    generator = torch.Generator().manual_seed(3)
    shape = (2, 3, 5, 16) if per_frame else (2, 5, 16)
    sample = torch.randn(2, 4, 3, 8, 6, generator=generator)
    return sample, torch.tensor([10, 900]), torch.randn(shape, generator=generator)


def gradients(model, parameters, *given):
    for one in parameters:
        one.grad = None
    out = model(*given)
    out = out if isinstance(out, torch.Tensor) else out.sample
    out.square().mean().backward()
    return [one.grad.clone() for one in parameters]


def agree(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("per_frame", [False, True])
def test_a_motion_module_learns_the_same(per_frame):
    animated = animated_model()
    parameters = list(animated.motion.parameters())
    wanted = gradients(animated, parameters, *inputs(per_frame))
    quicken_training(animated)
    agree(gradients(animated, parameters, *inputs(per_frame)), wanted)
    recompute_blocks(animated)
    agree(gradients(animated, parameters, *inputs(per_frame)), wanted)
    animated.deflate()
    assert not any("forward" in vars(module) for module in animated.modules())


def test_an_image_model_learns_the_same():
    unet = new_unet()
    sample, time, text = inputs()
    given = sample[:, :, 0], time, text
    wanted = gradients(unet, list(unet.parameters()), *given)
    quicken_training(unet)
    agree(gradients(unet, list(unet.parameters()), *given), wanted)


def test_wide_convolutions_and_their_gradients_are_filtered(monkeypatch):
    animated = animated_model()
    parameters = list(animated.motion.parameters())
    wanted = gradients(animated, parameters, *inputs())
    for name in ("_CHANNELS", "_TILES", "_WORK"):
        monkeypatch.setattr(winograd, name, 1)
    ways, convolve = [], winograd.convolve

    def noted(*given, transposed=False):
        ways.append(transposed)
        return convolve(*given, transposed=transposed)

    monkeypatch.setattr(winograd, "convolve", noted)
    quicken_training(animated)
    agree(gradients(animated, parameters, *inputs()), wanted)
    assert ways.count(False) > ways.count(True) > 0  # none before the first that learns
    plain = ways.count(False)
    recompute_blocks(animated)
    agree(gradients(animated, parameters, *inputs()), wanted)
    assert ways.count(False) > 2 * plain


def test_the_text_of_all_frames_is_projected_once(library):
    animated = animated_model()
    quicken_training(animated)
    with torch.profiler.profile(record_shapes=True) as profile:
        animated(*inputs())
    kernel, features = ("aten::mm", 0) if library == "mkl" else ("mkldnn::_linear_pointwise", 1)
    products = [event.input_shapes[:2] for event in profile.events() if event.name == kernel]
    rows = {tuple(x) for x, weight in products if weight[features] == 16}  # the text's alone
    assert rows == {(2 * 5, 16)}


def test_under_autocast_the_plain_forwards_run():
    outs = []
    for quick in (False, True):
        animated = animated_model()
        if quick:
            quicken_training(animated)
        with torch.autocast("cpu", torch.bfloat16):
            outs.append(animated(*inputs()).float())
    assert torch.isfinite(outs[1]).all()
    torch.testing.assert_close(outs[0], outs[1], atol=3e-2, rtol=3e-2)
