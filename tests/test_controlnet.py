"""ControlNets: every layout loads whole, and acts as in diffusers' own AnimateDiff pipeline."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import new_motion, new_unet
from diffusers.loaders import single_file_utils
from diffusers.models import AutoencoderKL, ControlNetModel, UNetMotionModel
from diffusers.models.controlnets import MultiControlNetModel
from diffusers.pipelines.animatediff import AnimateDiffControlNetPipeline
from PIL import Image
from safetensors.torch import save_file

from animatediff_core import Conditions, denoise, inflate, make_scheduler
from animatediff_core.adapters.controlnet import load_controlnet
from animatediff_core.checkpoints.families import families_of
from animatediff_core.checkpoints.motion_adapter import motion_adapter
from animatediff_core.diffusion.residuals import Control, add_residuals
from animatediff_core.diffusion.step_info import StepInfo
from animatediff_core.errors import CheckpointError

FRAMES, STEPS = 3, 4


def diffusers_model(seed: int = 5) -> ControlNetModel:
    """diffusers' own, for conftest's small UNet; no zero is left in it."""
    torch.manual_seed(seed)
    model = ControlNetModel.from_unet(
        new_unet(), conditioning_embedding_out_channels=(8, 16), load_weights_from_unet=False
    )
    for name, parameter in model.named_parameters():
        if "controlnet_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def original_names(model: ControlNetModel) -> dict[str, torch.Tensor]:
    """The first release's layout, from diffusers' conversion of it run on the names alone."""
    old = original_list()
    new = single_file_utils.convert_controlnet_checkpoint(
        {name: name for name in old}, {"layers_per_block": 1}
    )
    tensors = model.state_dict()
    assert new.keys() == tensors.keys()
    return {f"control_model.{name}": tensors[key] for key, name in new.items()}


def original_list() -> list[str]:
    """Names of two levels of one layer each, the first with attention."""
    resnet = ["in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3"]
    block = [f"attn{n}.{m}" for n in "12" for m in ("to_q", "to_k", "to_v", "to_out.0")]
    block += ["ff.net.0.proj", "ff.net.2", "norm1", "norm2", "norm3"]
    attention = ["norm", "proj_in", "proj_out", *(f"transformer_blocks.0.{n}" for n in block)]
    places = [
        *(f"time_embed.{n}" for n in (0, 2)), "input_blocks.0.0",
        *(f"input_blocks.1.0.{n}" for n in resnet), *(f"input_blocks.1.1.{n}" for n in attention),
        "input_blocks.2.0.op", *(f"input_blocks.3.0.{n}" for n in resnet),
        "input_blocks.3.0.skip_connection", *(f"zero_convs.{n}.0" for n in range(4)),
        *(f"middle_block.{i}.{n}" for i in (0, 2) for n in resnet),
        *(f"middle_block.1.{n}" for n in attention), "middle_block_out.0",
        *(f"input_hint_block.{n}" for n in (0, 2, 4, 14)),
    ]  # fmt: skip
    no_bias = re.compile(r"\.to_[qkv]$")
    return [f"{p}.{k}" for p in places for k in ("weight", "bias")
            if k == "weight" or not no_bias.search(p)]  # fmt: skip


def pictures(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (FRAMES, 16, 24, 3), dtype=np.uint8)


def condition(seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(pictures(seed)).permute(3, 0, 1, 2)[None].float() / 255


def texts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(1, 4, FRAMES, 8, 12, generator=generator),
        torch.randn(1, 5, 16, generator=generator),
        torch.randn(1, 5, 16, generator=generator),
    )


def theirs(**settings: object) -> torch.Tensor:
    """diffusers' latents with two ControlNets."""
    motion = new_motion(mid_block=False, version="v3")
    pipeline = AnimateDiffControlNetPipeline(
        vae=AutoencoderKL(norm_num_groups=4, block_out_channels=(8, 8),
                          down_block_types=("DownEncoderBlock2D",) * 2,
                          up_block_types=("UpDecoderBlock2D",) * 2),
        text_encoder=None, tokenizer=None, motion_adapter=None,
        unet=UNetMotionModel.from_unet2d(new_unet(), motion_adapter(motion)),
        controlnet=MultiControlNetModel([diffusers_model(5), diffusers_model(6)]),
        scheduler=make_scheduler("ddim", motion.config),
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    noise, text, negative = texts()
    videos = [[Image.fromarray(p) for p in pictures(seed)] for seed in (0, 1)]
    return pipeline(
        prompt_embeds=text, negative_prompt_embeds=negative, latents=noise, height=16, width=24,
        num_frames=FRAMES, num_inference_steps=STEPS, guidance_scale=7.5, output_type="latent",
        conditioning_frames=videos, **settings,
    ).frames  # fmt: skip


def ours(controls: list[Control]) -> torch.Tensor:
    motion = new_motion(mid_block=False, version="v3", frame_norm="clip")
    noise, text, negative = texts()
    return denoise(
        inflate(new_unet(), motion), make_scheduler("ddim", motion.config), noise, text, negative,
        steps=STEPS, guidance_scale=7.5, controls=controls,
    )  # fmt: skip


def test_latents_are_those_of_diffusers(tmp_path):
    diffusers_model(5).save_pretrained(tmp_path / "folder")
    save_file(original_names(diffusers_model(6)), tmp_path / "old.safetensors")
    models = [
        load_controlnet(tmp_path / name, new_unet()) for name in ("folder", "old.safetensors")
    ]
    controls = [
        Control(model=models[0], condition=condition(0), strength=0.8),
        Control(model=models[1], condition=condition(1), strength=0.5, start=0.25, end=0.75),
    ]
    expected = theirs(
        controlnet_conditioning_scale=[0.8, 0.5], control_guidance_start=[0.0, 0.25],
        control_guidance_end=[1.0, 0.75],
    )  # fmt: skip
    latents = ours(controls)
    assert (latents - expected).abs().max() < 1e-4
    assert (latents - ours(controls[:1])).abs().max() > 1e-2


@pytest.mark.parametrize("layout", ["bare", "diffusers", "whole checkpoint"])
def test_every_single_file_layout_loads_whole(tmp_path, layout):
    model = diffusers_model()
    names = original_names(model)
    if layout == "bare":
        names = {key.removeprefix("control_model."): t for key, t in names.items()}
    elif layout == "diffusers":
        names = model.state_dict()
    else:
        names["first_stage_model.decoder.conv_in.weight"] = torch.zeros(1)
    torch.save({"state_dict": names}, tmp_path / "c.pth")
    loaded = load_controlnet(tmp_path / "c.pth", new_unet()).state_dict()
    assert all(torch.equal(tensor, loaded[key]) for key, tensor in model.state_dict().items())


def test_weights_by_frame_scale_what_each_frame_gets():
    sample, text, _ = texts()
    control = Control(model=diffusers_model(), condition=condition())
    given = (sample, 5, text, Conditions())
    with torch.no_grad():
        plain = add_residuals([control], *given)
        weighted = add_residuals([replace(control, weights=(0.0, 0.5, 1.0))], *given)
        twice = add_residuals([control, control], *given)
    factors = torch.tensor([0.0, 0.5, 1.0]).view(-1, 1, 1, 1)
    for full, some, double in zip(
        (*plain.down_residuals, plain.mid_residual),
        (*weighted.down_residuals, weighted.mid_residual),
        (*twice.down_residuals, twice.mid_residual),
        strict=True,
    ):
        assert torch.allclose(full * factors, some)
        assert torch.allclose(2 * full, double)


def test_a_pooling_controlnet_applies_to_the_conditional_branch_only():
    sample, text, _ = texts()
    model = diffusers_model()
    model.register_to_config(global_pool_conditions=True)
    control = Control(model=model, condition=condition())
    with torch.no_grad():
        cond = add_residuals([control], sample, 5, text, Conditions())
    assert cond.mid_residual.shape[2:] == (1, 1)
    info = StepInfo(step=0, steps=1)
    assert control.acts(info, uncond=False)
    assert not control.acts(info, uncond=True)
    assert Control(model=diffusers_model(), condition=condition()).acts(info, uncond=True)


def test_a_control_acts_between_its_first_and_last_share_of_the_whole_schedule():
    control = Control(model=diffusers_model(), condition=condition(), start=0.25, end=0.75)
    infos = [StepInfo(step=i, steps=8) for i in range(8)]
    assert [i.step for i in infos if control.acts(i, uncond=False)] == [2, 3, 4, 5]
    late = [StepInfo(step=i, steps=4, skipped=4) for i in range(4)]
    assert [i.step for i in late if control.acts(i, uncond=False)] == [0, 1]
    off = replace(control, strength=0.0)
    assert not any(off.acts(i, uncond=False) for i in infos)


def test_a_window_gets_its_own_frames_pictures():
    sample, text, _ = texts()
    frames = torch.tensor([2, 0])
    control = Control(model=diffusers_model(), condition=condition(), weights=(1.0, 2.0, 3.0))
    with torch.no_grad():
        whole = add_residuals([control], sample, 5, text, Conditions())
        window = add_residuals([control], sample[:, :, frames], 5, text, Conditions(), frames)
    assert torch.allclose(whole.mid_residual[frames], window.mid_residual, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda names: names.pop("control_model.zero_convs.1.0.bias"), "lacks 1 of"),
        (
            lambda names: names.update({"control_model.extra": torch.zeros(1)}),
            "has 1 unknown tensors",
        ),
        (
            lambda names: names.pop("control_model.middle_block_out.0.weight"),
            "lacks 1 of",
        ),
    ],
)
def test_a_file_that_is_not_whole_is_refused(tmp_path, edit, message):
    names = original_names(diffusers_model())
    edit(names)
    save_file(names, tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_controlnet(tmp_path / "c.safetensors", new_unet())


def test_another_family_is_refused(tmp_path):
    diffusers_model().save_pretrained(tmp_path / "c")
    with pytest.raises(CheckpointError, match="is a ControlNet for UNet 32-64 but the base"):
        load_controlnet(tmp_path / "c", new_unet((32, 32)))


def test_a_small_one_without_transformers_loads_from_file_and_folder(tmp_path):
    torch.manual_seed(3)
    settings = dict(diffusers_model().config)
    settings |= {"down_block_types": ("DownBlock2D",) * 2, "mid_block_type": "UNetMidBlock2D"}
    small = ControlNetModel.from_config(settings)
    small.save_pretrained(tmp_path / "c")
    save_file(small.state_dict(), tmp_path / "c.safetensors")
    for path in (tmp_path / "c", tmp_path / "c.safetensors"):
        loaded = load_controlnet(path, new_unet()).state_dict()
        assert all(torch.equal(tensor, loaded[key]) for key, tensor in small.state_dict().items())
        with pytest.raises(CheckpointError, match="is a ControlNet for UNet 32-64 but the base"):
            load_controlnet(path, new_unet((32, 32)))


def test_levels_tell_the_family_of_one_that_reads_no_text():
    shapes = {f"down_blocks.{i}.resnets.0.conv1.weight": (c, c, 3, 3)
              for i, c in enumerate((320, 640, 1280, 1280))}  # fmt: skip
    assert families_of(shapes) == ("SD1.5", "SD2")
    shapes |= {"mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight": (1280, 1024)}
    assert families_of(shapes) == ("SD2",)
