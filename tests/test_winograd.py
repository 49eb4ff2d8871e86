"""Convolutions by Winograd's minimal filtering give the direct ones' numbers."""

import copy

import pytest
import torch
from diffusers.models import AutoencoderKL
from test_speed import NEAR, farthest, inputs, pair
from torch import nn
from torch.nn import functional as F

from animatediff_core.speed import optimize_vae, winograd


@pytest.fixture
def everywhere(monkeypatch):
    """Small layers go this way too; the shapes of all calls."""
    for name in ("_CHANNELS", "_TILES", "_WORK"):
        monkeypatch.setattr(winograd, name, 1)
    calls, convolve = [], winograd.convolve

    def counted(x, weight, bias, other=None):
        calls.append(x.shape)
        return convolve(x, weight, bias, other)

    monkeypatch.setattr(winograd, "convolve", counted)
    return calls


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize(
    ("pictures", "channels", "features", "height", "width"),
    [(16, 64, 64, 8, 8), (1, 48, 96, 7, 13), (3, 96, 40, 33, 6), (2, 32, 32, 1, 2)],
)
@pytest.mark.parametrize(("biased", "residual"), [(True, True), (True, False), (False, True)])
def test_every_shape_is_convolved(
    monkeypatch, pictures, channels, features, height, width, parts, biased, residual
):
    if parts:  # a few tiles at a time, and a few kernels
        monkeypatch.setattr(winograd, "_CHUNK", 3 * 96)
        monkeypatch.setattr(winograd, "_GROUP", 10 * 96)
        monkeypatch.setattr(winograd, "_KERNELS", 17 * channels)
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    x = random(pictures, channels, height, width).to(memory_format=torch.channels_last)
    weight = random(features, channels, 3, 3) / 3 / channels**0.5
    bias = random(features) if biased else None
    other = random(pictures, features, height, width) if residual else None
    wanted = F.conv2d(x.double(), weight.double(), bias if bias is None else bias.double(), 1, 1)
    wanted = wanted if other is None else wanted + other
    found = winograd.convolve(x, weight, bias, other)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found - wanted).abs().max() < NEAR
    assert torch.equal(found, winograd.convolve(x, weight, bias, other))
    swapped = weight.flip(2, 3).transpose(0, 1)  # of the convolution whose gradient this one is
    again = winograd.convolve(x, swapped.contiguous(), bias, other, transposed=True)
    assert (again - wanted).abs().max() < NEAR


def test_what_inference_left_behind_serves_calls_with_gradients(monkeypatch):
    monkeypatch.setattr(winograd, "_ROOMS", winograd._Rooms())
    x, weight = torch.ones(1, 8, 8, 8), torch.ones(8, 8, 3, 3)
    with torch.inference_mode():
        wanted = winograd.convolve(x, weight, None)
    room = winograd._ROOMS.kept.data_ptr()
    assert torch.equal(winograd.convolve(x, weight, None), wanted)
    assert winograd._ROOMS.kept.data_ptr() == room


def test_shapes_decide_which_calls_take_it():
    wide, clip = nn.Conv2d(320, 320, 3, padding=1), torch.empty(16, 320, 32, 32, device="meta")
    assert winograd.pays(wide, clip)
    assert winograd.pays(wide, clip[:, :, :2, :1]) is False
    assert winograd.pays(wide, clip.bfloat16()) is False
    others = [
        nn.Conv2d(320, 96, 3, padding=1), nn.Conv2d(320, 320, 3, padding=1, stride=2),
        nn.Conv2d(320, 320, 3), nn.Conv2d(320, 320, 5, padding=1),
        nn.Conv2d(320, 320, 3, padding=2, dilation=2),
    ]  # fmt: skip
    assert not any(winograd.pays(layer, clip) for layer in others)


def test_a_clip_is_the_plain_one_and_the_weights_come_back(everywhere):
    plain, fast = pair((64, 128))
    given = inputs(height=10, width=7)
    assert farthest(plain, fast, *given) < NEAR
    assert len(everywhere) == len(
        [m for m in plain.unet.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)
         and m.stride == (1, 1) and m.in_channels % 64 == m.out_channels % 64 == 0]
    )  # fmt: skip
    first = fast(*given)
    fast(*inputs(frames=5, batch=1))
    assert torch.equal(fast(*given), first)
    fast.deflate()
    for name, tensor in plain.unet.state_dict().items():
        assert torch.equal(fast.unet.state_dict()[name], tensor), name


def test_a_vae_decodes_the_same(everywhere):
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(64, 64), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=8, latent_channels=4,
    ).eval().requires_grad_(False)  # fmt: skip
    kept = copy.deepcopy(vae)
    optimize_vae(vae)
    latents = torch.randn(3, 4, 9, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (vae.decode(latents).sample - kept.decode(latents).sample).abs().max() < 1e-4
    assert (3, 64, 18, 12) in everywhere
