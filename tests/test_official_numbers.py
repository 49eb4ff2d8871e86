"""The official arithmetic, against references that share no code with ours.

The reference is diffusers' UNetMotionModel, whose own norms pool over frames; where the official
code takes each frame alone (or pools the UNet's ResNets), its norm layers are replaced here.
"""

import pytest
import torch
from conftest import new_motion, new_unet
from diffusers.models import UNetMotionModel
from safetensors.torch import save_file
from test_motion_lora import motion_lora
from torch import nn

from animatediff_core import apply_lora, apply_motion_lora, denoise, inflate, make_scheduler
from animatediff_core.checkpoints.motion_adapter import motion_adapter
from animatediff_core.errors import CheckpointError
from animatediff_core.motion import VERSIONS, Conditions

SETTINGS = {
    # frames of the full length, and the two norms (facts/motion-modules.md 1.4)
    "v1": {"mid_block": False, "max_frames": 24, "frame_norm": "frame", "resnet_norm": "clip"},
    "v2": {"mid_block": True, "max_frames": 32, "frame_norm": "frame", "resnet_norm": "frame"},
    "v3": {"mid_block": False, "max_frames": 32, "frame_norm": "frame", "resnet_norm": "frame"},
    "sdxl-beta": {"mid_block": False, "max_frames": 32, "frame_norm": "clip",
                  "resnet_norm": "frame"},
    "pooled": {"mid_block": True, "max_frames": 16, "frame_norm": "clip", "resnet_norm": "clip"},
}  # fmt: skip


class PerFrame(nn.Module):
    """A norm of each frame alone, where the caller gives b c f h w."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return torch.stack([self.norm(frame) for frame in x.unbind(2)], dim=2)


class OverFrames(nn.Module):
    """A norm over whole clips, where the caller gives (b f) c h w."""

    def __init__(self, norm, frames):
        super().__init__()
        self.norm, self.frames = norm, frames

    def forward(self, x):
        clips = [self.norm(clip.transpose(0, 1)[None])[0] for clip in x.split(self.frames)]
        return torch.cat([clip.transpose(0, 1) for clip in clips])


def reference(unet, motion, frames):
    """diffusers' model of the same weights, with the official norms."""
    model = UNetMotionModel.from_unet2d(unet, motion_adapter(motion)).eval()
    for block in (*model.down_blocks, model.mid_block, *model.up_blocks):
        for site in getattr(block, "motion_modules", None) or ():
            if motion.config.frame_norm == "frame":
                site.norm = PerFrame(site.norm)
        if motion.config.resnet_norm == "clip":
            for resnet in block.resnets:
                resnet.norm1 = OverFrames(resnet.norm1, frames)
                resnet.norm2 = OverFrames(resnet.norm2, frames)
    if motion.config.resnet_norm == "clip":
        model.conv_norm_out = OverFrames(model.conv_norm_out, frames)
    return model


def theirs(model, clips, times, text):
    """diffusers' model reads one text a frame."""
    return model(clips, times, text.repeat_interleave(clips.shape[2], 0)).sample


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(one, other, tolerance=1e-4):
    return (one - other).norm() / other.norm() < tolerance


@pytest.mark.parametrize("version", SETTINGS)
@pytest.mark.parametrize(("size", "frames"), [((5, 7), 3), ((9, 16), 2), ((4, 4), None)])
@torch.no_grad()
def test_forward_at_odd_sizes_and_at_full_length(version, size, frames):
    settings = SETTINGS[version]
    if version in VERSIONS:
        kind = VERSIONS[version]
        assert {name: getattr(kind, name) for name in settings} == settings
    unet, motion = new_unet(), new_motion(**settings)
    frames = frames or settings["max_frames"]
    clips, text, times = drawn(2, 4, frames, *size), drawn(2, 5, 16), torch.tensor([10, 900])
    expected = theirs(reference(unet, motion, frames), clips, times, text)
    ours = inflate(unet, motion)(clips, times, text)
    assert ours.shape == clips.shape
    assert close(ours, expected)


@torch.no_grad()
def test_the_norms_make_a_difference():
    """So that the test above could fail."""
    clips, text = drawn(1, 4, 6, 5, 7), drawn(1, 5, 16)
    clips = clips * torch.linspace(0.2, 3, 6)[:, None, None]
    outputs = []
    for frame_norm in ("frame", "clip"):
        for resnet_norm in ("frame", "clip"):
            motion = new_motion(frame_norm=frame_norm, resnet_norm=resnet_norm)
            outputs.append(inflate(new_unet(), motion)(clips, 500, text))
    for number, one in enumerate(outputs):
        assert not any(close(one, other, 1e-2) for other in outputs[number + 1 :])


@torch.no_grad()
def test_guided_ddim_is_the_formula():
    """25 steps, leading spacing 961, 921 … 1, alpha 1 after the last, classifier-free guidance."""
    unet, motion = new_unet(), new_motion()
    noise, text, negative = drawn(1, 4, 3, 4, 5), drawn(1, 5, 16), drawn(1, 5, 16, seed=1)
    model = reference(unet, motion, 3)
    betas = torch.tensor([0.00085 + (0.012 - 0.00085) * n / 999 for n in range(1000)]).double()
    alphas = torch.cumprod(1 - betas, 0)
    steps = [961 - 40 * n for n in range(25)]
    assert steps[-1] == 1
    x = noise.double()
    for t in steps:
        both = theirs(model, x.float().repeat(2, 1, 1, 1, 1), t, torch.cat([text, negative]))
        eps, without = both.double().chunk(2)
        eps = without + 7.5 * (eps - without)
        before = alphas[t - 40] if t > 40 else torch.ones(())
        start = (x - (1 - alphas[t]).sqrt() * eps) / alphas[t].sqrt()
        x = before.sqrt() * start + (1 - before).sqrt() * eps
    scheduler = make_scheduler("ddim", motion.config)
    ours = denoise(inflate(unet, motion), scheduler, noise, text, negative)
    assert scheduler.timesteps.tolist() == steps
    assert close(ours.double(), x)


def beside(model, tensors, scale, spelled):
    """The official attention processors: every projection adds scale * up(down(x))."""
    for key in tensors:
        if key.endswith(".down.weight"):
            down, up = tensors[key], tensors[key.replace(".down.", ".up.")]
            layer = model.get_submodule(spelled(key.removesuffix("_lora.down.weight")))

            def add(layer, inputs, output, down=down, up=up):
                return output + scale * (inputs[0] @ down.T @ up.T)

            layer.register_forward_hook(add)


def official_name(key):
    return key.replace(".processor.", ".").replace("to_out", "to_out.0")


@pytest.mark.parametrize("scale", [1.0, -0.6])
@torch.no_grad()
def test_motion_lora_is_added_beside_the_projections(tmp_path, scale):
    tensors = {k: 0.3 * t for k, t in motion_lora(new_motion()).items()}
    save_file(tensors, tmp_path / "l.safetensors")
    clips, text = drawn(1, 4, 4, 5, 7), drawn(1, 5, 16)
    hooked, merged = new_motion(), new_motion()
    beside(hooked, tensors, scale, official_name)
    apply_motion_lora(merged, tmp_path / "l.safetensors", scale)
    expected = inflate(new_unet(), hooked)(clips, 500, text)
    assert close(inflate(new_unet(), merged)(clips, 500, text), expected)
    assert not close(inflate(new_unet(), new_motion())(clips, 500, text), expected, 1e-2)


@torch.no_grad()
def test_the_domain_adapter_is_added_beside_the_projections(tmp_path):
    tensors, unet = {}, new_unet()
    for name, layer in unet.named_modules():
        for kind in ("to_q", "to_k", "to_v", "to_out.0"):
            if name.endswith(f".{kind}") and ".attn" in name:
                stem = name.removesuffix(kind) + f"processor.{kind[:6].rstrip('.')}_lora"
                tensors[f"{stem}.down.weight"] = drawn(128, layer.in_features) / 16
                tensors[f"{stem}.up.weight"] = drawn(layer.out_features, 128, seed=1) / 16
    save_file(tensors, tmp_path / "adapter.safetensors")
    clips, text = drawn(1, 4, 3, 5, 7), drawn(1, 5, 16)
    beside(unet, tensors, 0.7, official_name)
    expected = inflate(unet, new_motion())(clips, 500, text)
    merged = new_unet()
    assert apply_lora(merged, tmp_path / "adapter.safetensors", 0.7) == len(tensors) // 2
    assert close(inflate(merged, new_motion())(clips, 500, text), expected)


def pia_pair():
    """A PIA module whose norms are diffusers', and its input: mask, then a picture's latents."""
    motion = new_motion(mid_block=False, version="pia", frame_norm="clip", conv_in_channels=9)
    torch.nn.init.normal_(motion.conv_in.weight, std=0.3)
    torch.nn.init.normal_(motion.conv_in.bias)
    return motion, drawn(2, 5, 4, 5, 7, seed=3)


@torch.no_grad()
def test_pia_takes_mask_and_picture_as_diffusers_does():
    unet, (motion, image) = new_unet(), pia_pair()
    clips, text = drawn(2, 4, 4, 5, 7), drawn(2, 5, 16)
    model = UNetMotionModel.from_unet2d(unet, motion_adapter(motion)).eval()
    assert model.conv_in.in_channels == 9
    expected = theirs(model, torch.cat([clips, image], dim=1), 500, text)
    animated = inflate(unet, motion)
    assert close(animated(clips, 500, text, Conditions(image_latents=image)), expected)
    assert not close(
        animated(clips, 500, text, Conditions(image_latents=0 * image)), expected, 1e-2
    )


@torch.no_grad()
def test_deflating_pia_gives_the_image_model_back_bit_for_bit():
    unet, (motion, image) = new_unet(), pia_pair()
    picture, text = drawn(1, 4, 5, 7), drawn(1, 5, 16)
    before = unet(picture, 500, text).sample
    animated = inflate(unet, motion)
    animated(picture[:, :, None], 500, text, Conditions(image_latents=image[:1, :, :1]))
    assert torch.equal(animated.deflate()(picture, 500, text).sample, before)
    assert unet.conv_in.in_channels == 4


def test_pias_picture_is_needed_and_others_refuse_it():
    unet, (motion, image) = new_unet(), pia_pair()
    clips, text = drawn(2, 4, 4, 5, 7), drawn(2, 5, 16)
    animated = inflate(unet, motion)
    with pytest.raises(CheckpointError, match=r"PIA, which animates an image: .* got none"):
        animated(clips, 500, text)
    with pytest.raises(CheckpointError, match=r"need image_latents of shape \(2, 5, 4, 5, 7\)"):
        animated(clips, 500, text, Conditions(image_latents=image[:, :4]))
    plain = inflate(new_unet(), new_motion())
    with pytest.raises(CheckpointError, match="is v2 and takes no image_latents"):
        plain(clips, 500, text, Conditions(image_latents=image))
    wide = new_motion(conv_in_channels=33, version="pia")
    with pytest.raises(CheckpointError, match="conv_in has 33 channels but this base model's 4"):
        inflate(new_unet(), wide)
