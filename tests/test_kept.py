"""Clips that begin from a video, or keep parts of one: start latents, masks, whole frames."""

import random

import numpy as np
import pytest
import torch
from conftest import TINY, new_motion, new_unet
from diffusers.models import AutoencoderKL, UNetMotionModel
from diffusers.pipelines.animatediff import AnimateDiffVideoToVideoPipeline

from animatediff_core import denoise, inflate, make_scheduler
from animatediff_core.checkpoints.motion_adapter import motion_adapter
from animatediff_core.diffusion.conditioning import Conditioning
from animatediff_core.diffusion.decoding import decode
from animatediff_core.diffusion.denoise import denoise_steps
from animatediff_core.diffusion.interpolation import interpolate
from animatediff_core.diffusion.known_region import (
    KnownRegion,
    encode_images,
    known_frames,
    latent_mask,
)
from animatediff_core.jobs import first_step
from animatediff_core.tiny.renderer import render
from animatediff_core.tiny.world import draw_scene, poses

FRAMES, STEPS = 3, 5


def some(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def clip(seed: int) -> torch.Tensor:
    return some(seed, 1, 4, FRAMES, 8, 16)


def run(scheduler: str = "ddim", norm: str = "frame", **settings: object) -> torch.Tensor:
    motion = new_motion(mid_block=False, version="v3", frame_norm=norm)
    return denoise(
        inflate(new_unet(), motion), make_scheduler(scheduler, motion.config), clip(0),
        some(1, 1, 5, 16), some(2, 1, 5, 16), steps=STEPS, guidance_scale=3.0,
        generator=torch.Generator().manual_seed(3), **settings,
    )  # fmt: skip


def test_video_to_video_is_that_of_diffusers():
    motion = new_motion(mid_block=False, version="v3")
    scheduler = make_scheduler("ddim", motion.config)
    pipeline = AnimateDiffVideoToVideoPipeline(
        vae=AutoencoderKL(norm_num_groups=4, block_out_channels=(8,)), text_encoder=None,
        tokenizer=None, motion_adapter=None, scheduler=scheduler,
        unet=UNetMotionModel.from_unet2d(new_unet(), motion_adapter(motion)),
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    start = first_step(0.6, STEPS)
    scheduler.set_timesteps(STEPS)
    noisy = scheduler.add_noise(clip(5), clip(0), scheduler.timesteps[start : start + 1])
    theirs = pipeline(
        strength=0.6, latents=noisy, height=8, width=16,
        prompt_embeds=some(1, 1, 5, 16), negative_prompt_embeds=some(2, 1, 5, 16),
        num_inference_steps=STEPS, guidance_scale=3.0, output_type="latent",
    ).frames  # fmt: skip
    ours = run(norm="clip", source=clip(5), start=start)
    assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("strength", "steps", "first"),
    [(1.0, 25, 0), (0.6, 5, 2), (0.5, 25, 13), (0.3, 25, 17), (0.1, 4, 3), (0.01, 25, 24)],
)
def test_strength_is_the_share_of_the_steps_that_run(strength, steps, first):
    assert first_step(strength, steps) == first


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "euler_a", "dpmpp_2m", "pndm", "lcm"])
def test_what_is_kept_comes_out_as_it_was(scheduler):
    mask = torch.ones(1, 1, FRAMES, 8, 16)
    mask[:, :, 0] = 0
    mask[:, :, 2, :, :4] = 0
    kept = run(scheduler, known_region=KnownRegion(latents=clip(5), mask=mask))
    assert torch.equal(kept[:, :, 0], clip(5)[:, :, 0])
    assert torch.equal(kept[:, :, 2, :, :4], clip(5)[:, :, 2, :, :4])
    assert torch.isfinite(kept).all()
    assert (kept - clip(5))[:, :, 1].abs().max() > 0.1


@pytest.mark.parametrize("name", ["ddim", "euler", "dpmpp_2m"])
def test_what_is_kept_is_as_noisy_as_the_next_step_expects(name):
    """As a stock inpainting pipeline: the clean latents with the clip's own first noise."""
    motion = new_motion(mid_block=False, version="v3")
    scheduler = make_scheduler(name, motion.config)
    clean, noise = clip(5), clip(0)
    mask = torch.ones(1, 1, FRAMES, 8, 16)
    mask[:, :, 1, 2:] = 0
    mask[:, :, 2] = 0.25
    conditioning = Conditioning(
        text=some(1, 1, 5, 16),
        negative_text=some(2, 1, 5, 16),
        known=KnownRegion(latents=clean, mask=mask),
    )
    animated, inputs = inflate(new_unet(), motion), []
    animated.register_forward_pre_hook(lambda model, given: inputs.append(given[0]))
    steps = [x for _, x in denoise_steps(animated, scheduler, noise, conditioning, steps=STEPS)]
    assert len(steps) == STEPS == len(scheduler.timesteps)
    fresh = make_scheduler(name, motion.config)  # finds the noise by timestep
    fresh.set_timesteps(STEPS)
    begun = fresh.add_noise(clean, noise, fresh.timesteps[:1])
    first = fresh.scale_model_input(begun, fresh.timesteps[0])
    torch.testing.assert_close(inputs[0][:, :, 1, 2:], first[:, :, 1, 2:])
    for latents, after in zip(steps[:-1], fresh.timesteps[1:], strict=True):
        expected = fresh.add_noise(clean, noise, after.reshape(1))
        torch.testing.assert_close(latents[:, :, 1, 2:], expected[:, :, 1, 2:])
        assert (latents - expected)[:, :, 0].abs().max() > 0.01
        assert (latents - expected)[:, :, 2].abs().max() > 0.01
    assert torch.equal(steps[-1][:, :, 1, 2:], clean[:, :, 1, 2:])


def test_nothing_kept_is_the_free_clip_and_all_kept_the_given_one():
    free = KnownRegion(latents=clip(5), mask=torch.ones(1, 1, FRAMES, 1, 1))
    assert torch.equal(run(known_region=free), run())
    assert torch.equal(run(known_region=KnownRegion(latents=clip(5), mask=torch.zeros(1))), clip(5))


def test_kept_frames_lead_the_others():
    first = known_frames({0: clip(5)[:, :, :1]}, FRAMES)
    last = known_frames({0: clip(6)[:, :, :1]}, FRAMES)
    assert first.mask.flatten(2)[0, 0].view(FRAMES, -1).amax(1).tolist() == [0, 1, 1]
    assert (run(known_region=first) - run(known_region=last))[:, :, 1:].abs().max() > 0.01


def test_a_clip_between_two_pictures_goes_from_one_to_the_other():
    made = interpolate(torch.stack([torch.zeros(4, 2, 3), torch.ones(4, 2, 3)]), [1, 3], range(5))
    assert made.shape == (5, 4, 2, 3)
    assert made[:, 1, 1, 2].tolist() == [0, 0, 0.5, 1, 1]


def test_a_mask_covers_every_latent_that_it_touches():
    pictures = np.zeros((2, 16, 16, 3), np.uint8)
    pictures[1, 9, 3] = 255
    mask = latent_mask(pictures, 8)
    assert mask.shape == (1, 1, 2, 2, 2)
    assert mask.flatten().tolist() == [0, 0, 0, 0, 0, 0, 1, 0]


def test_pictures_of_its_world_come_back_through_the_bundled_vae():
    vae = AutoencoderKL.from_pretrained(TINY / "base" / "vae").eval()
    rng = random.Random(1)
    scene = draw_scene(rng)
    film = render(scene, poses(scene, rng, 3)).permute(0, 2, 3, 1).mul(255).byte().numpy()
    back = decode(vae, encode_images(vae, film, chunk=2))
    error = ((back.astype(float) - film) ** 2).mean()
    assert 10 * np.log10(255**2 / error) > 25
