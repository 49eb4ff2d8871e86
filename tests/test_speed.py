"""An optimised model gives the plain model's numbers, and becomes the plain model again."""

import copy

import numpy as np
import pytest
import torch
from conftest import new_motion, new_unet, weight_pairs
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file

import animatediff_core as ad
from animatediff_core.adapters.lora import apply_lora
from animatediff_core.motion import Conditions, Positions
from animatediff_core.speed import kernels_of, optimize_vae, restore

NEAR = 2e-5


def frozen(unet):
    return unet.eval().requires_grad_(False)


def pair(channels=(32, 64), dtype=torch.float32, **changes):
    """The same model twice: plain, optimised."""
    sides = []
    for _ in range(2):
        unet = frozen(new_unet(channels)).to(dtype)
        sides.append(ad.inflate(unet, new_motion(channels, **changes).to(dtype)))
    return sides[0], ad.optimize(sides[1])


def inputs(frames=3, batch=2, height=8, width=6, travel=False, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    shape = (batch, frames, 5, 16) if travel else (batch, 5, 16)
    return (
        torch.randn(batch, 4, frames, height, width, generator=generator).to(dtype),
        torch.tensor([10, 900][:batch]),
        torch.randn(shape, generator=generator).to(dtype),
    )


def farthest(plain, fast, *arguments):
    with torch.no_grad():
        return float((plain(*arguments) - fast(*arguments)).abs().max())


@pytest.mark.parametrize(
    ("changes", "given"),
    [
        ({}, {"travel": True}),
        ({"frame_norm": "clip"}, {"height": 7, "width": 5, "batch": 1}),
        ({"resnet_norm": "clip", "mid_block": False}, {"frames": 16}),
        ({"resnet_norm": "clip", "frame_norm": "clip"}, {"frames": 1}),
        ({"max_frames": 80}, {"frames": 70, "batch": 1, "height": 4, "width": 4}),
    ],
)
def test_numbers_are_the_plain_ones(changes, given):
    plain, fast = pair(**changes)
    assert farthest(plain, fast, *inputs(**given)) < NEAR


@pytest.mark.parametrize("strength", [0, 0.3, 2])
def test_motion_strength_and_residuals(strength):
    plain, fast = pair()
    sample, time, text = inputs()
    conditions = Conditions(
        motion_strength=strength,
        motion_positions=Positions(stretch=0.5, offset=1),
        mid_residual=torch.randn(6, 64, 4, 4, generator=torch.Generator().manual_seed(1)),
    )
    assert farthest(plain, fast, sample, time, text, conditions) < NEAR


def test_linear_projections_and_several_blocks_as_in_sdxl():
    sides = []
    for _ in range(2):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8, block_out_channels=(32, 64), layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), norm_num_groups=8,
            cross_attention_dim=16, attention_head_dim=(2, 4), use_linear_projection=True,
            transformer_layers_per_block=(1, 2),
        )  # fmt: skip
        sides.append(ad.inflate(frozen(unet), new_motion()))
    assert farthest(sides[0], ad.optimize(sides[1]), *inputs()) < NEAR


@pytest.mark.parametrize(
    ("channels", "tiles"), [((32, 64), False), ((32, 256), False), ((32, 256), True)]
)
def test_bf16_is_no_further_from_fp32_than_the_plain_path(channels, tiles, monkeypatch):
    """Also with wide heads, whose attention over frames is in bf16 where the CPU has tiles."""
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: tiles)
    exact, _ = pair(channels)
    plain, fast = pair(channels, dtype=torch.bfloat16)
    given = inputs(dtype=torch.bfloat16)
    with torch.no_grad():
        wanted = exact(given[0].float(), given[1], given[2].float())
        plainly, fastly = (
            float((side(*given).float() - wanted).norm() / wanted.norm()) for side in (plain, fast)
        )
    assert fastly < 1.1 * plainly


def test_runs_are_alike_to_the_bit_whatever_ran_between():
    _, fast = pair()
    given, other = inputs(), inputs(frames=5, height=7, batch=1)
    with torch.no_grad():
        first = fast(*given)
        fast(*other)
        assert torch.equal(fast(*given), first)


def test_without_gradients_asked_for_none_are_kept_and_no_mode_is_needed():
    plain, fast = pair()
    out = fast(*inputs())
    assert not out.requires_grad
    assert (plain(*inputs()) - out).abs().max() < NEAR


def test_a_gradient_is_the_plain_one():
    plain, fast = pair()
    gradients = []
    for side in (plain, fast):
        sample, time, text = inputs()
        text.requires_grad_(True)
        side(sample, time, text).square().mean().backward()
        gradients.append(text.grad)
    assert (gradients[0] - gradients[1]).abs().max() < 1e-6


def test_a_trainable_motion_module_stays_plain_and_learns():
    sides = []
    for _ in range(2):
        motion = new_motion().requires_grad_(True)
        sides.append(ad.inflate(frozen(new_unet()), motion))
    ad.optimize(sides[1])
    assert not any("forward" in vars(layer) for layer in sides[1].motion.modules())
    for side in sides:
        side(*inputs()).square().mean().backward()
    for one, other in zip(*(side.motion.parameters() for side in sides), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-6)


def test_a_text_that_frames_share_is_projected_once_a_call():
    _, fast = pair()
    sample, time, text = inputs()
    calls = []
    layer = next(m for m in fast.unet.modules() if getattr(m, "is_cross_attention", False)).to_k

    def noted(x):
        calls.append(x.shape)
        return type(layer).forward(layer, x)

    layer.forward = noted
    with torch.no_grad():
        fast(sample[:1], time[:1], text[:1])
        fast(sample[:1], time[:1], inputs(travel=True)[2][:1])
    assert calls == [(1, 5, 16), (3, 5, 16)]


def test_one_product_makes_query_key_and_value():
    _, fast = pair()
    attention = fast.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    places = [layer.weight.data_ptr() for layer in (attention.to_q, attention.to_k, attention.to_v)]
    size = attention.to_q.weight.nbytes
    assert [place - places[0] for place in places] == [0, size, 2 * size]


def test_weights_that_lie_behind_one_another_by_chance_are_not_one():
    """As a GPU's allocator lays them: three memories without a gap."""
    plain, fast = pair()
    rest = []
    for attention in fast.modules():
        if not all(hasattr(attention, name) for name in ("to_q", "to_k", "to_v")):
            continue
        layers = (attention.to_q, attention.to_k, attention.to_v)
        if len({layer.weight.shape for layer in layers}) == 1:
            numbers = torch.cat([layer.weight for layer in layers]).numpy().copy()
            rest.append(numbers)
            for layer, part in zip(layers, np.split(numbers, 3), strict=True):
                layer.weight.data = torch.from_numpy(part)
    assert rest
    assert farthest(plain, fast, *inputs()) < NEAR


@pytest.mark.parametrize("change", ["cast", "copied", "twice"])
def test_an_optimised_model_may_be_cast_copied_and_optimised_again(change):
    plain, fast = pair()
    if change == "cast":
        fast = fast.double().float()
    elif change == "copied":
        restore(fast)
        fast = ad.optimize(ad.inflate(copy.deepcopy(fast.deflate()), copy.deepcopy(fast.motion)))
    else:
        restore(fast)
        fast = ad.optimize(fast)
    assert farthest(plain, fast, *inputs()) < NEAR


def test_hooks_on_layers_still_run():
    plain, fast = pair()
    for side in (plain, fast):
        for name, layer in side.named_modules():
            if name.endswith(("ff.net.0.proj", "to_out.0", "conv2", "attn2", "ff.net.2")):
                layer.register_forward_hook(lambda module, given, out: out * 1.1)
    assert farthest(plain, fast, *inputs()) < 2 * NEAR


def test_deflate_gives_the_image_model_back():
    plain, fast = pair()
    kept = {name: t.clone() for name, t in plain.state_dict().items()}
    assert kernels_of(fast) == "fused"
    assert fast.state_dict().keys() == kept.keys()
    assert all(torch.equal(t, kept[name]) for name, t in fast.state_dict().items())
    fast.deflate()
    assert not any("forward" in vars(layer) for layer in fast.modules())
    for name, parameter in fast.named_parameters():
        assert torch.equal(parameter, kept[name]), name
        assert parameter.is_contiguous(), name
    again = ad.inflate(fast.unet, fast.motion)
    with torch.no_grad():
        assert torch.equal(again(*inputs()), plain(*inputs()))


def test_saved_folders_hold_plain_weights(tmp_path):
    plain, fast = pair()
    fast.unet.save_pretrained(tmp_path / "unet")
    ad.save_motion_module(fast.motion, tmp_path / "motion.safetensors")
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    motion = ad.load_motion_module(tmp_path / "motion.safetensors")
    for given, wanted in ((unet, plain.unet), (motion, plain.motion)):
        for name, tensor, found in weight_pairs(wanted, given):
            assert torch.equal(found, tensor), name


def test_a_lora_reaches_an_optimised_model(tmp_path):
    plain, fast = pair()
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    lora = {f"{name}.lora_A.weight": torch.ones(2, 32), f"{name}.lora_B.weight": torch.ones(32, 2)}
    save_file({f"unet.{key}": t for key, t in lora.items()}, tmp_path / "lora.safetensors")
    assert farthest(plain, fast, *inputs()) < NEAR
    for side in (plain, fast):
        assert apply_lora(side.unet, tmp_path / "lora.safetensors", 1.0) == 1
    assert farthest(plain, fast, *inputs()) < NEAR


def test_optimising_twice_is_optimising_once():
    plain, fast = pair()
    assert ad.optimize(fast) is fast
    fast.deflate()
    assert farthest(plain, ad.optimize(ad.inflate(fast.unet, fast.motion)), *inputs()) < NEAR


def test_a_vae_decodes_the_same():
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(64, 64), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=8, latent_channels=4,
    ).eval().requires_grad_(False)  # fmt: skip
    latents = torch.randn(3, 4, 9, 6, generator=torch.Generator().manual_seed(0))
    kept = copy.deepcopy(vae)
    optimize_vae(vae)
    with torch.no_grad():
        assert (vae.decode(latents).sample - kept.decode(latents).sample).abs().max() < 1e-4
        restore(vae)
        assert torch.equal(vae.decode(latents).sample, kept.decode(latents).sample)
