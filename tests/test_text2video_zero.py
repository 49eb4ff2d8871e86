"""Text2Video-Zero against diffusers' deprecated pipeline, and its parts by hand."""

import pytest
import torch
from conftest import TINY
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from diffusers.schedulers import DDIMScheduler
from transformers.models.clip import CLIPTextModel, CLIPTokenizer

from animatediff_core.diffusion.conditioning import Conditioning
from animatediff_core.diffusion.denoise import denoise_steps
from animatediff_core.diffusion.guidance import Guidance
from animatediff_core.diffusion.image_unet import ImageUNet
from animatediff_core.diffusion.text2video_zero import (
    background_smoothed,
    cross_frame_attention,
    moved_frames,
    noised_again,
)

BASE = TINY / "base"


def test_the_motion_field_moves_each_frame_further():
    row = torch.arange(8.0).view(1, 1, 1, 1, 8).expand(1, 1, 1, 4, 8)
    moved = moved_frames(row, 3, (64.0, 0.0))  # 64 of 512 pixels: one of 8 latents
    assert moved[0, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert moved[0, 0, 1, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 7]  # mirrored at the border
    assert moved[0, 0, 2, 0].tolist() == [2, 3, 4, 5, 6, 7, 7, 6]
    column = moved_frames(row.transpose(3, 4), 2, (0.0, -64.0))
    assert column[0, 0, 1, :, 0].tolist() == [0, 0, 1, 2, 3, 4, 5, 6]


def test_noise_between_two_timesteps_adds_up_to_ddpms():
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    clean, noise = torch.full((1, 1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1, 1), 3.0)
    kept = float(scheduler.alphas_cumprod[940] / scheduler.alphas_cumprod[880])
    noised = noised_again(clean, scheduler, 881, 941, noise)
    assert noised.item() == pytest.approx(2 * kept**0.5 + 3 * (1 - kept) ** 0.5, rel=1e-5)


def test_smoothing_changes_the_background_alone():
    latents, moved = torch.full((1, 2, 1, 1, 2), 10.0), torch.full((1, 2, 1, 1, 2), 20.0)
    background = torch.tensor([0.0, 1.0]).view(1, 1, 1, 1, 2)
    smoothed = background_smoothed(latents, moved, background, 0.4)
    assert smoothed[0, 1, 0, 0].tolist() == [10, pytest.approx(16)]


@pytest.mark.filterwarnings("ignore::UserWarning")  # diffusers' calls of old forms, told once
def test_the_latents_are_those_of_diffusers_pipeline():
    from diffusers.pipelines.deprecated.text_to_video_synthesis import (
        pipeline_text_to_video_zero as theirs,
    )

    unet = UNet2DConditionModel.from_pretrained(BASE / "unet").float()
    schedule = DDIMScheduler.from_pretrained(BASE / "scheduler", clip_sample=False)
    pipeline = theirs.TextToVideoZeroPipeline(
        AutoencoderKL.from_pretrained(BASE / "vae").float(),
        CLIPTextModel.from_pretrained(BASE / "text_encoder").float(),
        CLIPTokenizer.from_pretrained(BASE / "tokenizer"),
        unet,
        schedule,
        None,
        None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    prompt, frames = "a red circle on a blue background", 3
    noise = torch.randn(1, 4, 8, 16, generator=torch.Generator().manual_seed(3))
    wanted = pipeline(
        prompt,
        video_length=frames,
        height=32,
        width=64,
        num_inference_steps=10,
        guidance_scale=5.0,
        latents=noise,
        generator=torch.Generator().manual_seed(9),
        t0=5,
        t1=7,
        motion_field_strength_x=90,
        motion_field_strength_y=-40,
        output_type="latent",
    ).images
    text, negative = pipeline.encode_prompt(prompt, "cpu", 1, True)
    guided = Conditioning(text=text, negative_text=negative, guidance=Guidance(scale=5.0))
    scheduler, still = DDIMScheduler.from_config(schedule.config), ImageUNet(unet)
    steps = denoise_steps(still, scheduler, noise[:, :, None], guided, steps=10)
    reached = {info.step: x for (info, x), _ in zip(steps, range(4), strict=False)}
    timesteps = [int(t) for t in scheduler.timesteps]
    moved = moved_frames(reached[4], frames, (90, -40))[:, :, 1:]
    fresh = torch.randn(frames - 1, 4, 8, 16, generator=torch.Generator().manual_seed(9))
    fresh = fresh.transpose(0, 1)[None]
    noised = noised_again(moved, scheduler, timesteps[4], timesteps[2], fresh)
    together = torch.cat([reached[2], noised], dim=2)
    with cross_frame_attention(unet, frames):
        *_, (_, last) = denoise_steps(still, scheduler, together, guided, steps=10, start=2)
    assert (last[0].transpose(0, 1) - wanted).abs().max() < 1e-4
    assert not any(module._forward_pre_hooks for module in unet.modules())
