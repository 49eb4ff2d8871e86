"""The stages of world 2's family: VAE, base with its text encoder, motion module.

Scenes are drawn, encoded and learned from on one device, inside one step; there are no files of
data. Legend: b scenes, f frames, c channels, h w latent size, t tokens, d features.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ...diffusion.loss import image_loss, motion_loss
from ...motion import inflate
from ..parts import normalize_latents
from . import models, state
from .family import Family
from .gates import base_gate, drawing_speed, motion_gate, save_sheet, vae_gate
from .judge import judge_gate, judge_loss
from .pool import Pool
from .scenes import COUNTS, draw_scenes
from .training import Trainer

STAGES = ("vae", "judge", "base", "motion")
SHARES = {"vae": 0.18, "judge": 0.08, "base": 0.46, "motion": 0.28}
"""Of the time, where all stages are made."""
NAMED_FROM = 28
"""Tokens from here on are after the end of every caption."""


def train_stage(
    family: Family,
    stage: str,
    seconds: float,
    *,
    max_steps: int | None = None,
    speeds: bool = False,
) -> Iterator[str]:
    """Train one stage for so long, save it, and yield lines with its gates."""
    loss_of, names, gate = _STAGES[stage](family)
    modules = [family.parts()[name] for name in names]
    for module in modules:
        module.requires_grad_(True)
    if speeds:
        yield f"{stage}: {drawing_speed(family, family.recipes[stage].batch, stage)}"
    trainer = Trainer(loss_of, modules, family.recipes[stage], family.device)
    if family.device.type == "cuda" and stage == "base":
        trainer, line = _quicker_layout(family, trainer)
        yield f"{stage}: {line}"
    for report in trainer.run(seconds, max_steps=max_steps):
        yield (
            f"{stage}: {report.seconds:.0f} s, step {report.step}, loss {report.loss:.4f}, "
            f"{report.samples_per_second:.0f} samples/s, {report.how}"
        )
        if report.samples_per_second == 0:
            continue
        if report.seconds > seconds * 2 / 3:
            _save(family, stage, names, trainer, report.seconds)
        try:
            with trainer.averaged(), torch.no_grad():
                line, images = gate(family)
                save_sheet(images, family.folder / f"{stage}.png")
            yield f"{stage}: gate {line}"
        except RuntimeError as error:  # a gate that fails must not cost the weights
            yield f"{stage}: no gate: {error}"
    with torch.no_grad():
        torch._foreach_copy_(trainer.used, trainer.average)
    for module in modules:
        module.requires_grad_(False)
    if stage == "vae":
        yield _normalize(family, trainer)


def _quicker_layout(family: Family, first: Trainer) -> tuple[Trainer, str]:
    """The trainer whose weights lie so that a step takes least: channels last or first."""
    first.capture()
    times = [first.milliseconds()]
    family.arrange(torch.contiguous_format)
    second = Trainer(first.loss_of, first.modules, first.recipe, first.device)
    second.capture()
    times.append(second.milliseconds())
    line = (
        f"a step takes {times[0]:.1f} ms with channels last, {times[1]:.1f} ms with channels first"
    )
    if times[1] < times[0]:
        return second, line
    family.arrange(torch.channels_last)
    again = Trainer(first.loss_of, first.modules, first.recipe, first.device)
    return again, line


def _save(
    family: Family, stage: str, names: tuple[str, ...], trainer: Trainer, seconds: float
) -> None:
    before = family.notes[names[0]]
    notes = {
        "steps": before.get("steps", 0) + trainer.steps,
        "seconds": round(before.get("seconds", 0) + seconds),
    }
    for name, weights in zip(names, trainer.weights(), strict=True):
        state.save_part(family.folder, name, weights, notes)


def _normalize(family: Family, trainer: Trainer) -> str:
    """Scale the latents of the finished VAE, in fp32, and save it once more."""
    full = models.new_vae(family.sizes).to(family.device)
    with torch.no_grad():
        for parameter, average in zip(full.parameters(), trainer.average, strict=True):
            parameter.copy_(average)
        batch = min(8 * family.recipes["vae"].batch, 512)
        latents = torch.cat([family.latents(draw_scenes(batch // 2, family.device)) for _ in "ab"])
    normalize_latents(full, latents)
    deviation = [round(float(v), 3) for v in latents.std((0, 2, 3))]
    notes = {"steps": trainer.steps, "deviation": deviation}
    state.save_part(family.folder, "vae", dict(full.named_parameters()), notes)
    with torch.no_grad():
        torch._foreach_copy_(list(family.vae.parameters()), list(full.parameters()))
    return f"vae: latents' deviations were {deviation}"


Stage = tuple[Callable[[], Tensor], tuple[str, ...], Callable[[Family], tuple[str, Tensor]]]


def _vae_stage(family: Family) -> Stage:
    batch = family.recipes["vae"].batch

    def loss_of() -> Tensor:
        with torch.no_grad():
            images = family.images(draw_scenes(batch, family.device))
        moments = family.vae.quant_conv(family.vae.encoder(images.to(family.dtype)))
        mean, log_variance = moments.float().chunk(2, 1)
        log_variance = log_variance.clamp(-20, 10)
        latents = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        decoded = family.vae.decoder(family.vae.post_quant_conv(latents.to(family.dtype)))
        error = decoded.float() - images
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        rate = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        loss: Tensor = error.abs().mean() + 2 * error.square().mean() + 0.5 * edges + 2e-5 * rate
        return loss

    return loss_of, ("vae",), vae_gate


def _judge_stage(family: Family) -> Stage:
    batch = family.recipes["judge"].batch
    return lambda: judge_loss(family, batch), ("judge",), judge_gate


def _base_stage(family: Family) -> Stage:
    recipe = family.recipes["base"]

    def make(count: int) -> tuple[Tensor, Tensor, Tensor]:
        scenes = draw_scenes(count, family.device)
        return family.latents(scenes), family.caption_ids(scenes), scenes.labels()

    with torch.no_grad():
        pool = Pool(make, recipe.pool, recipe.new, min(512, recipe.pool))

    def loss_of() -> Tensor:
        with torch.no_grad():
            latents, ids, labels = pool.draw(recipe.batch)
            dropped = torch.rand(recipe.batch, 1, device=family.device) < 0.1
            ids = torch.where(dropped, family.empty(1), ids)
            labels = torch.where(dropped, -1, labels)
        text = family.encode_text(ids)
        timesteps = family.timesteps(recipe.batch, 0.0, 1.1)
        noise = torch.randn_like(latents)
        loss = image_loss(family.unet, family.scheduler, latents, noise, timesteps, text)
        return loss + 0.02 * _naming_loss(family, text, labels)

    return loss_of, ("unet", "text"), base_gate


def _naming_loss(family: Family, text: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of naming every attribute at positions after the caption. labels: b a."""
    scores = family.naming(text[:, NAMED_FROM::4]).float()  # b t sum of COUNTS
    total = scores.new_zeros(())
    for part, label in zip(scores.split(COUNTS, 2), labels.unbind(1), strict=True):
        wanted = label.unsqueeze(1).expand(part.shape[:2])
        total = total + F.cross_entropy(
            part.flatten(0, 1), wanted.flatten(), ignore_index=-1, reduction="sum"
        )
    mean: Tensor = total / (scores.shape[0] * scores.shape[1])
    return mean


def _motion_stage(family: Family) -> Stage:
    recipe, frames = family.recipes["motion"], family.sizes.frames
    animated = inflate(family.unet, family.motion)

    def make(count: int) -> tuple[Tensor, Tensor]:
        scenes = draw_scenes(count, family.device)
        latents = family.latents(scenes, frames).unflatten(0, (count, frames)).transpose(1, 2)
        return latents.to(family.dtype), family.caption_ids(scenes)

    with torch.no_grad():
        pool = Pool(make, recipe.pool, recipe.new, min(24, recipe.pool))

    def loss_of() -> Tensor:
        with torch.no_grad():
            latents, ids = pool.draw(recipe.batch)
            dropped = torch.rand(recipe.batch, 1, device=family.device) < 0.1
            text = family.encode_text(torch.where(dropped, family.empty(1), ids))
        timesteps = family.timesteps(recipe.batch, 1.2, 1.2)
        latents = latents.float()
        noise = torch.randn_like(latents)
        return motion_loss(animated, family.scheduler, latents, noise, timesteps, text)

    def gate(family: Family) -> tuple[str, Tensor]:
        return motion_gate(family, animated)

    return loss_of, ("motion",), gate


_STAGES: dict[str, Callable[[Family], Stage]] = {
    "vae": _vae_stage,
    "judge": _judge_stage,
    "base": _base_stage,
    "motion": _motion_stage,
}
