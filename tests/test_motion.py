"""The motion module and inflation: the official numbers, and an image model that stays itself."""

from pathlib import Path

import pytest
import torch
from conftest import new_motion, new_unet
from diffusers.models import UNet2DConditionModel
from safetensors.torch import load_file

from animatediff_core import inflate, load_motion_module, motion_loss
from animatediff_core.diffusion.schedules import training_scheduler
from animatediff_core.errors import CheckpointError
from animatediff_core.motion import VERSIONS, Conditions, MotionConfig, MotionModule, Positions
from animatediff_core.motion.module import sinusoids


def official(golden: Path, version: str):
    name = "motion_module.ckpt" if version == "v1" else "motion_module.safetensors"
    unet = UNet2DConditionModel.from_pretrained(golden / version / "unet2d").eval()
    return inflate(unet, load_motion_module(golden / version / name, version=version))


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_forward_is_the_official_one(golden, version):
    tensors = load_file(golden / version / "io.safetensors")
    animated = official(golden, version)
    with torch.no_grad():
        out = animated(tensors["sample"], tensors["timestep"], tensors["encoder_hidden_states"])
    assert (out - tensors["output"]).abs().max() < 1e-4


def test_training_step_is_the_official_one(golden):
    tensors = load_file(golden / "v2" / "train.safetensors")
    animated = official(golden, "v2")
    animated.motion.requires_grad_(True)
    animated.unet.requires_grad_(False)
    loss = motion_loss(
        animated,
        training_scheduler(animated.motion.config.betas),
        tensors["latents"],
        tensors["noise"],
        tensors["timesteps"],
        tensors["encoder_hidden_states"],
    )
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in animated.motion.parameters()]).norm()
    assert abs(loss - tensors["loss"].squeeze()) < 1e-5
    assert abs(norm / tensors["grad_norm"].squeeze() - 1) < 1e-4


def sample(frames: int = 4):
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(2, 4, frames, 8, 6, generator=generator),
        torch.tensor([10, 900]),
        torch.randn(2, 5, 16, generator=generator),
    )


def test_zero_init_motion_leaves_image_model_unchanged():
    unet = new_unet()
    fresh = MotionModule(new_motion().config)
    x, t, text = sample()
    with torch.no_grad():
        plain = torch.stack([unet(x[:, :, i], t, text).sample for i in range(4)], 2)
        moved = inflate(unet, fresh)(x, t, text)
    assert torch.allclose(plain, moved, atol=1e-5)


@pytest.mark.parametrize("norm", ["frame", "clip"])
def test_deflate_gives_the_image_model_back_bit_for_bit(norm):
    unet = new_unet()
    keys = list(unet.state_dict())
    x, t, text = sample()
    with torch.no_grad():
        before = unet(x[:, :, 0], t, text).sample
        animated = inflate(unet, new_motion(resnet_norm=norm))
        assert list(unet.state_dict()) == keys
        moved = animated(x, t, text)
        assert animated.deflate() is unet
        after = unet(x[:, :, 0], t, text).sample
    assert torch.equal(before, after)
    assert not torch.allclose(moved[:, :, 0], before, atol=1e-2)
    assert inflate(unet, new_motion()) is not None


def test_clips_do_not_see_each_other():
    animated = inflate(new_unet(), new_motion(resnet_norm="clip", frame_norm="clip"))
    x, t, text = sample()
    with torch.no_grad():
        both = animated(x, t, text)
        alone = animated(x[1:], t[1:], text[1:])
    assert torch.allclose(both[1:], alone, atol=1e-5)


def test_motion_strength_zero_is_the_image_model():
    unet = new_unet()
    animated = inflate(unet, new_motion())
    x, t, text = sample(1)
    with torch.no_grad():
        still = animated(x, t, text, Conditions(motion_strength=0.0))
        animated.deflate()
        assert torch.equal(still[:, :, 0], unet(x[:, :, 0], t, text).sample)


@torch.no_grad()
def test_motion_strength_scales_the_residual_of_each_site():
    motion = new_motion()
    transformer = motion.mid_block.motion_modules[0].temporal_transformer
    features = torch.randn(6, 64, 3, 5, generator=torch.Generator().manual_seed(1))  # b 2, f 3
    residual = transformer(features, 3) - features
    for strength in (0.25, 0.5, 2.0, -1.0):
        moved = transformer(features, 3, strength)
        torch.testing.assert_close(moved, features + strength * residual)
    assert residual.abs().max() > 0.1


@torch.no_grad()
def test_strengths_of_clip_block_and_frame_multiply():
    animated = inflate(new_unet(), new_motion())
    x, t, text = sample()
    strengths, outputs = {}, []

    def note(layer, inputs, output):
        strengths[layer] = inputs[2]

    blocks = {"down": animated.motion.down_blocks[0], "up": animated.motion.up_blocks[1]}
    sites = {name: block.motion_modules[0].temporal_transformer for name, block in blocks.items()}
    hooks = [site.register_forward_hook(note) for site in sites.values()]
    animated(x, t, text, Conditions(motion_strength=0.5, motion_blocks={"up_blocks.1": 0.25}))
    assert (strengths[sites["down"]], strengths[sites["up"]]) == (0.5, 0.125)

    def keep(layer, inputs, output):
        outputs.append(output[0])

    hooks.append(animated.unet.mid_block.attentions[0].register_forward_hook(keep))
    frames = torch.tensor([1.0, 0.5, 0.0, 2.0])
    off = dict.fromkeys(("down_blocks.0", "down_blocks.1"), 0.0)
    for more in ({"motion_strength": 0.0}, {}, {"motion_frames": frames}):
        animated(x, t, text, Conditions(motion_blocks=off, **more))
    for hook in hooks:
        hook.remove()
    still, moved, weighed = outputs
    expected = still + frames.repeat(2).view(-1, 1, 1, 1) * (moved - still)  # b 2, f 4
    torch.testing.assert_close(weighed, expected, atol=1e-5, rtol=1e-4)
    assert (moved - still).abs().max() > 0.1


def test_motion_strength_acts_by_frame_and_by_block():
    animated = inflate(new_unet(), new_motion())
    x, t, text = sample()
    blocks = ("down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1")
    with torch.no_grad():
        full = animated(x, t, text)
        still = animated(x, t, text, Conditions(motion_strength=0.0))
        none = animated(x, t, text, Conditions(motion_frames=torch.zeros(4)))
        all_off = animated(x, t, text, Conditions(motion_blocks=dict.fromkeys(blocks, 0.0)))
        ones = animated(x, t, text, Conditions(motion_frames=torch.ones(4)))
        one_off = animated(x, t, text, Conditions(motion_blocks={"mid_block": 0.0}))
        some = animated(x, t, text, Conditions(motion_frames=torch.tensor([0.0, 1, 1, 1])))
    assert torch.allclose(still, none, atol=1e-5)
    assert torch.equal(still, all_off)
    assert torch.allclose(full, ones, atol=1e-5)
    assert torch.allclose(some[:, :, 0], still[:, :, 0], atol=1e-5)
    for other in (one_off, some):
        assert (other - full).abs().max() > 1e-3
        assert (other - still).abs().max() > 1e-3


def test_positions_are_read_where_they_are_asked_for():
    table = sinusoids(16, 8, torch.zeros(()))
    whole = sinusoids(5, 8, torch.zeros(()), Positions(stretch=3, offset=2))
    assert torch.equal(whole, table[[2, 5, 8, 11, 14]])
    between = sinusoids(4, 8, torch.zeros(()), Positions(stretch=0.5, offset=1))
    halfway = (table[[1, 2]] + table[[2, 3]]) / 2
    assert torch.equal(between[::2], table[[1, 2]])
    assert torch.allclose(between[1::2], halfway, atol=1e-6)


def test_stretched_positions_move_less_and_let_more_frames_in():
    animated = inflate(new_unet(), new_motion(max_frames=4))
    x, t, text = sample()
    slow = Conditions(motion_positions=Positions(stretch=0.5))
    with torch.no_grad():
        usual = animated(x, t, text)
        assert torch.equal(animated(x, t, text, Conditions(motion_positions=Positions())), usual)
        assert (animated(x, t, text, slow) - usual).abs().max() > 1e-3
        assert animated(torch.cat([x, x[:, :, :3]], 2), t, text, slow).shape[2] == 7
        for positions in (Positions(stretch=1.5), Positions(offset=0.5)):
            with pytest.raises(CheckpointError, match="has 0 to 3; lower the stretch"):
                animated(x, t, text, Conditions(motion_positions=positions))
        assert torch.equal(animated(x, t, text), usual)


def test_text_may_differ_from_frame_to_frame():
    animated = inflate(new_unet(), new_motion())
    x, t, text = sample()
    repeated = text.unsqueeze(1).expand(-1, 4, -1, -1)
    with torch.no_grad():
        assert torch.equal(animated(x, t, text), animated(x, t, repeated))


def test_a_full_size_module_has_the_released_sizes():
    sizes = {"v1": (417.1376, 520), "v2": (453.209, 546), "sdxl-beta": (236.779, 390)}
    for version, (millions, tensors) in sizes.items():
        with torch.device("meta"):
            motion = MotionModule(VERSIONS[version])
        assert len(motion.state_dict()) == tensors
        assert sum(p.numel() for p in motion.parameters()) / 1e6 == pytest.approx(millions, 1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: inflate(new_unet((32, 64)), new_motion((32, 32))), "base model's family"),
        (lambda: inflate(new_unet((32, 64)), new_motion((32, 64, 64))), "blocks of 32, 64, 64"),
        (lambda: inflate(inflate(new_unet(), new_motion()).unet, new_motion()), "already animated"),
        (lambda: inflate(new_unet(), new_motion(max_frames=2))(*sample(4)), "fewer frames"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(CheckpointError, match=message):
        change()


def test_a_module_of_another_family_is_named_at_full_size():
    names = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    ups = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280, 1280), down_block_types=names,
            up_block_types=ups, cross_attention_dim=768,
        )  # fmt: skip
        motion = MotionModule(VERSIONS["sdxl-beta"])
        v2 = MotionModule(VERSIONS["v2"])
    with pytest.raises(CheckpointError, match="made for SDXL .* but the base model is SD1.5"):
        inflate(unet, motion)
    assert len(inflate(unet, v2)._handles) == 21


def test_config_refuses_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="does not divide"):
        MotionConfig(block_out_channels=(30,))
