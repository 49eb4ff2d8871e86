"""Figures and sample images of each stage while it trains.

Legend: b scenes, f frames, c channels, h w latent size.
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ...motion import AnimatedUNet
from .family import Family
from .judge import right
from .scenes import Scenes, draw_scenes
from .training import record

STEPS, GUIDANCE = 20, 3.0


def vae_gate(family: Family) -> tuple[str, Tensor]:
    """Signal-to-noise ratio of unseen images, in dB."""
    images = family.images(held_out(family, 64)) / 2 + 0.5
    latents = family.vae.encode((images * 2 - 1).to(family.dtype)).latent_dist.mean
    decoded = family.decode(latents)
    error = (decoded - images).square().mean((1, 2, 3))
    ratio = float((-10 * error.log10()).mean())
    shown = torch.stack([images[:16], decoded[:16]], 1)
    return f"PSNR {ratio:.2f} dB", shown


def base_gate(family: Family) -> tuple[str, Tensor]:
    """Samples of held-out captions, and what the judge sees in them."""
    scenes, side = held_out(family, 64), family.sizes.pixels // 8
    noise = torch.randn(64, 4, side, side, device=family.device)
    images = family.decode(sample(family, family.unet, scenes, noise)).unsqueeze(1)
    return _shares(right(family, images, scenes.labels())), images[:32]


def motion_gate(family: Family, animated: AnimatedUNet) -> tuple[str, Tensor]:
    """Clips of held-out captions."""
    count, side = 16, family.sizes.pixels // 8
    scenes = held_out(family, count)
    noise = torch.randn(count, 4, family.sizes.frames, side, side, device=family.device)
    latents = sample(family, animated, scenes, noise).transpose(1, 2).flatten(0, 1)
    clips = family.decode(latents).unflatten(0, (count, family.sizes.frames))
    drawn = family.renderer.clips(scenes, family.sizes.frames)
    change, wanted = (float(c.diff(dim=1).abs().mean()) for c in (clips, drawn))
    shares = _shares(right(family, clips[:, ::2], scenes.labels()))
    return f"change {change:.4f}, of drawn clips {wanted:.4f}; {shares}", clips[:8]


def _shares(right: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.2f}" for name, share in right.items())


def drawing_speed(family: Family, batch: int, stage: str) -> str:
    """Milliseconds that a step spends on drawing its images and on encoding them."""
    frames = family.sizes.frames if stage in ("motion", "judge") else 1

    def draw() -> None:
        family.images(draw_scenes(batch, family.device), frames)

    def encode() -> None:
        family.latents(draw_scenes(batch, family.device), frames)

    with torch.no_grad():
        times = [_milliseconds(family.device, work) for work in (draw, encode)]
    speed = batch * frames / times[0] * 1000
    return f"drawing {times[0]:.1f} ms ({speed:.0f} images/s), with encoding {times[1]:.1f} ms"


def _milliseconds(device: torch.device, work: Callable[[], None], runs: int = 8) -> float:
    again = work
    if device.type == "cuda":
        try:
            again = record(work).replay
        except RuntimeError:
            torch.cuda.synchronize()
    else:
        runs = 1
    began = time.monotonic()
    for _ in range(runs):
        again()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.monotonic() - began) / runs * 1000


def held_out(family: Family, count: int) -> Scenes:
    """Scenes of held-out combinations, equal at every gate."""
    generator = torch.Generator(family.device).manual_seed(1)
    return draw_scenes(count, family.device, generator, held_out=True)


def sample(
    family: Family, model: torch.nn.Module, scenes: Scenes, noise: Tensor, steps: int = STEPS
) -> Tensor:
    """Guided DDIM of velocities from noise, b c ... h w."""
    ids = torch.cat([family.empty(len(noise)), family.caption_ids(scenes)])
    text = family.encode_text(ids)
    alphas = family.scheduler.alphas_cumprod
    times = torch.linspace(999, 0, steps + 1).round().long().tolist()
    x = noise
    for now, after in zip(times, times[1:], strict=False):
        batch = torch.full((2 * len(x),), now, device=x.device)
        out = model(torch.cat([x, x]), batch, text)
        velocity = (out if isinstance(out, Tensor) else out.sample).float()
        uncond, cond = velocity.chunk(2)
        velocity = uncond + GUIDANCE * (cond - uncond)
        signal, rest = alphas[now].sqrt(), (1 - alphas[now]).sqrt()
        clean = signal * x - rest * velocity
        grain = signal * velocity + rest * x
        x = alphas[after].sqrt() * clean + (1 - alphas[after]).sqrt() * grain
    return x


def save_sheet(images: Tensor, path: Path) -> None:
    """A PNG of rows of frames, b f 3 h w, two or more scenes side by side."""
    from PIL import Image

    frames = images[:, :: max(images.shape[1] // 4, 1)]
    row = frames.permute(0, 3, 1, 4, 2).flatten(2, 3)  # b h (f w) 3
    across = max(8 // frames.shape[1], 1)
    rows = [torch.cat(list(part), 1) for part in row.split(across) if len(part) == across]
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet = (torch.cat(rows) * 255).round().byte().cpu().numpy()
    Image.fromarray(sheet).save(path)
