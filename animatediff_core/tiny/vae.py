"""First stage of the tiny model: an AutoencoderKL of factor 4, 64 x 64 pixels to 4 x 16 x 16.

Shapes: n images, 3 h w pixels in [-1, 1], 4 h/4 w/4 latents.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers.models import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from .parts import new_vae, normalize_latents
from .renderer import render_batch
from .saved import load_state, resume_parts, save_parts
from .world import draw_scene, poses

CROPPED_STEPS = 3000
"""Steps on crops around the thing, where all detail is, before the whole images."""
STEPS = 3400
CROP = 32


def _untrained_vae() -> AutoencoderKL:
    """0.7 M parameters; an ordinary AutoencoderKL, so that it takes the path of a real one."""
    return new_vae((16, 32, 64), groups=8, pixels=64)


def images(rng: random.Random, count: int, *, crop: int | None = None) -> Tensor:
    """Random frames of random clips of the seen combinations: n 3 h w in [-1, 1].

    `crop` cuts a square of so many pixels around the edge of the thing.
    """
    scenes = [draw_scene(rng) for _ in range(count)]
    chosen = [rng.choice(poses(scene, rng)) for scene in scenes]
    batch = render_batch(scenes, chosen) * 2 - 1
    if crop is None:
        return batch
    cuts = []
    for image, pose in zip(batch, chosen, strict=True):
        top, left = (
            round(min(max(64 * (share + rng.uniform(-0.25, 0.25)) - crop / 2, 0), 64 - crop))
            for share in (pose.y, pose.x)
        )
        cuts.append(image[:, top : top + crop, left : left + crop])
    return torch.stack(cuts)


def train_vae(state_file: Path, *, steps: int = STEPS) -> Iterator[tuple[int, float]]:
    """Train and save the state at `state_file`; yields step and PSNR in dB. Resumes by itself."""
    torch.manual_seed(0)
    vae = _untrained_vae()
    average = torch.optim.swa_utils.AveragedModel(
        vae, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995)
    )
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 2e-3, total_steps=steps + 1, pct_start=0.05
    )
    parts = {"vae": vae, "average": average, "optimizer": optimizer, "schedule": schedule}
    for step in range(resume_parts(state_file, parts), steps):
        batch = _training_batch(step)
        noise = torch.Generator().manual_seed(step)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(batch).latent_dist
            image = vae.decode(posterior.sample(noise)).sample.float()
        difference = image - batch
        rate = 0.5 * (posterior.mean.pow(2) + posterior.var - 1 - posterior.logvar).mean()
        loss = difference.abs().mean() + 2 * difference.pow(2).mean() + 1e-4 * rate.float()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(vae)
        if (step + 1) % 100 == 0 or step + 1 == steps:
            save_parts(state_file, parts, step + 1)
            yield step + 1, psnr(average.module)


def _training_batch(step: int) -> Tensor:
    rng = random.Random(step)
    if step < CROPPED_STEPS:
        return images(rng, 32, crop=CROP)
    return images(rng, 16)


def psnr(vae: AutoencoderKL) -> float:
    """Mean signal-to-noise ratio of 64 unseen images, in dB."""
    batch = images(random.Random(-1), 64)
    with torch.no_grad():
        image = vae.decode(vae.encode(batch).latent_dist.mean).sample
    error = F.mse_loss(image, batch, reduction="none").mean((1, 2, 3))
    return float((10 * torch.log10(4 / error)).mean())


def finished_vae(state_file: Path) -> AutoencoderKL:
    """The averaged weights, with latents of zero mean and unit variance in every channel."""
    state = load_state(state_file)
    assert state is not None, "the stage before must have run"
    weights = {k.removeprefix("module."): v for k, v in state["average"].items()}
    weights.pop("n_averaged")
    vae = _untrained_vae()
    vae.load_state_dict(weights)
    batch = images(random.Random(-2), 512)
    with torch.no_grad():
        latents = torch.cat([vae.encode(b).latent_dist.mean for b in batch.split(64)])
    normalize_latents(vae, latents)
    return vae.requires_grad_(False).eval()
