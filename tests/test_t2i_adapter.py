"""T2I-Adapters: the plain UNet's numbers with the same residuals, every layout, what is refused."""

import re

import pytest
import torch
from conftest import both_forwards, new_motion, new_unet
from diffusers.models.adapter import T2IAdapter
from safetensors.torch import save_file

import animatediff_core as ad
from animatediff_core import Conditions, denoise, inflate, make_scheduler
from animatediff_core.adapters.identify import identify
from animatediff_core.adapters.t2i_adapter import load_t2i_adapter
from animatediff_core.diffusion.residuals import Control, add_residuals
from animatediff_core.errors import CheckpointError

FRAMES, HEIGHT, WIDTH, FACTOR = 3, 64, 48, 8
LEVELS = {"full_adapter": (32, 64), "light_adapter": (32, 32), "full_adapter_xl": (32, 64)}
"""Of the UNets that they fit: a light one's last two levels have as many channels."""


def new_adapter(kind: str = "full_adapter", in_channels: int = 3) -> T2IAdapter:
    """A small random one."""
    torch.manual_seed(5)
    channels = {"full_adapter": [32, 64], "light_adapter": [32], "full_adapter_xl": [32, 64, 64]}
    scale = 2 * FACTOR if kind == "full_adapter_xl" else FACTOR
    return T2IAdapter(in_channels, channels[kind], 2, scale, kind).eval()


def released(adapter: T2IAdapter) -> dict[str, torch.Tensor]:
    """Its tensors by the first release's names."""
    named = {}
    for key, tensor in adapter.state_dict().items():
        key = key.removeprefix("adapter.")
        if adapter.config.adapter_type == "light_adapter":
            key = key.replace(".resnets.", ".body.")
        else:
            key = re.sub(r"body\.(\d+)\.resnets\.(\d+)",
                         lambda m: f"body.{2 * int(m[1]) + int(m[2])}", key)  # fmt: skip
            key = re.sub(r"body\.(\d+)\.in_conv", lambda m: f"body.{2 * int(m[1])}.in_conv", key)
        named[key] = tensor
    return named


def made(model: torch.nn.Module, **changes: object) -> Control:
    pictures = torch.rand(1, 3, FRAMES, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(2))
    return Control(model=model, condition=pictures, **changes)


def given() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(1, 4, FRAMES, 8, 6, generator=generator),
            torch.randn(1, 5, 16, generator=generator))  # fmt: skip


@both_forwards
@pytest.mark.parametrize("kind", ["full_adapter", "light_adapter"])
def test_each_frame_is_the_plain_unets_with_its_residuals(kind, fast):
    adapter, unet = new_adapter(kind), new_unet(LEVELS[kind]).requires_grad_(False)
    sample, text = given()
    control = made(adapter, strength=0.8, weights=(1.0, 0.5, 0.0))
    with torch.no_grad():
        wanted = []
        for frame, weight in enumerate(control.weights):
            residuals = [0.8 * weight * r for r in adapter(control.condition[:, :, frame])]
            out = unet(sample[:, :, frame], 500, text,
                       down_intrablock_additional_residuals=residuals).sample  # fmt: skip
            wanted.append(out)
        animated = inflate(unet, new_motion(LEVELS[kind]))
        if fast:
            ad.optimize(animated)
        still = Conditions(motion_strength=0)
        led = add_residuals([control], sample, 500, text, still)
        found = animated(sample, 500, text, led)
        free = animated(sample, 500, text, still)
    assert (found - torch.stack(wanted, 2)).abs().max() < 1e-4
    assert (found - free)[:, :, 0].abs().max() > 1e-2
    picked = torch.tensor([2, 0])
    window = add_residuals([control], sample[:, :, picked], 500, text, still, picked)
    for part, whole in zip(window.adapter_residuals, led.adapter_residuals, strict=True):
        assert torch.allclose(part, whole[picked], atol=1e-6)
    cut = led.at(picked, FRAMES).adapter_residuals[0]
    assert torch.equal(cut, led.adapter_residuals[0][picked])


def test_it_acts_in_its_share_of_the_steps_and_two_add_up():
    animated = inflate(new_unet(), new_motion())
    noise, text = given()

    def latents(*controls: Control) -> torch.Tensor:
        return denoise(animated, make_scheduler("ddim", animated.motion.config), noise, text, text,
                       steps=2, guidance_scale=1, controls=controls)  # fmt: skip

    one = made(new_adapter())
    free, led = latents(), latents(one)
    assert not torch.equal(free, led)
    assert torch.equal(latents(made(one.model, end=0.4)), free)
    half = made(one.model, strength=0.5)
    assert torch.allclose(latents(half, half), led, atol=1e-4)


@pytest.mark.parametrize("kind", ["full_adapter", "light_adapter", "full_adapter_xl"])
@pytest.mark.parametrize("in_channels", [3, 1])
def test_folders_and_files_of_every_layout_hold_the_same_adapter(tmp_path, kind, in_channels):
    adapter = new_adapter(kind, in_channels)
    adapter.save_pretrained(tmp_path / "folder")
    save_file(released(adapter), tmp_path / "released.safetensors")
    torch.save(adapter.state_dict(), tmp_path / "file.bin")
    pictures = torch.rand(2, in_channels, HEIGHT, WIDTH)
    with torch.no_grad():
        wanted = adapter(pictures)
        for name in ("folder", "released.safetensors", "file.bin"):
            report = identify(tmp_path / name)
            assert (report.kind, report.goes_in) == ("T2I-Adapter", "t2i_adapters")
            loaded = load_t2i_adapter(tmp_path / name, new_unet(LEVELS[kind]), FACTOR)
            assert all(map(torch.equal, loaded(pictures), wanted))


def test_greys_are_read_from_colours():
    control = made(new_adapter(in_channels=1))
    sample, text = given()
    grey = (control.condition * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1, 1)).sum(1)
    led = add_residuals([control], sample, 1, text, Conditions())
    with torch.no_grad():
        wanted = control.model(grey[0].unsqueeze(1))
    assert torch.allclose(led.adapter_residuals[0], wanted[0], atol=1e-5)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("body.3.block2.bias"), "T2I-Adapter: it lacks 1 of"),
        (lambda t: t.update({"skep.weight": torch.zeros(1)}), "has 1 unknown tensors"),
        (lambda t: t.update({"conv_in.weight": torch.zeros(32, 7, 3, 3)}), "another base model"),
        (lambda t: t.clear() or t.update({"conv_in.weight": torch.zeros(1)}), "is no T2I-Adapter"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(tmp_path, edit, message):
    tensors = released(new_adapter())
    edit(tensors)
    save_file(tensors, tmp_path / "adapter.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_t2i_adapter(tmp_path / "adapter.safetensors", new_unet(), FACTOR)


def test_one_for_another_unet_is_refused(tmp_path):
    new_adapter().save_pretrained(tmp_path / "folder")
    with pytest.raises(CheckpointError, match=r"adds 32, 64 channels .* this one, UNet 8-8-8"):
        load_t2i_adapter(tmp_path / "folder", new_unet((8, 8, 8)), FACTOR)
