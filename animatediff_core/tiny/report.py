"""Measures the bundled models on prompts of held-out combinations, and the judge on the renderer.

`python -m animatediff_core.tiny measure [MEMBER] [COUNT] [SHEET.png]` prints Markdown tables.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..checkpoints.base_model import BaseModel
from ..diffusion.decoding import decode
from ..diffusion.denoise import denoise
from ..diffusion.image_unet import ImageUNet
from ..diffusion.noise import draw_noise, seeded
from ..diffusion.schedules import make_scheduler
from ..diffusion.text import embed_prompt
from ..jobs import Job, job_from_options
from ..media.image import contact_sheet, write_image
from ..motion import AnimatedUNet
from ..planning.jobs import plan, spec_of
from ..sampling.loading import load_model
from ..sampling.placement import PlacedModel, Placement
from ..sampling.sample import sample
from .measure import Verdict, judge
from .members import MEMBERS, PLAIN_MEMBER, Member, member_named
from .world import DIRECTIONS, MOTIONS, Scene, draw_scene

GATES = {
    "look": 0.90,
    "background": 0.95,
    "color": 0.95,
    "shape": 0.85,
    "direction": 0.90,
    "growing or shrinking": 0.85,
}
CHANGE = 0.25
"""Most that a clip of tiny may change from frame to frame, as a share of single frames."""
EXCESS = 1.99
"""How many times the drawn clips' share tiny's own share is, on its first 24 prompts. A member's
may be a tenth more: where things are slim or large, any clip changes by a larger share."""
STILLS = 8
"""Frames sampled one by one of each prompt; the change between them is that of every pair."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    right: float
    count: int
    wanted: str = ""


def main(arguments: Sequence[str]) -> Iterator[str]:
    """Lines of the report, of one member or all: the judge's own proof, then the model."""
    members = [member_named(arguments[0])] if arguments else MEMBERS
    for member in members:
        count = 120 if member is PLAIN_MEMBER else 52
        if len(arguments) > 1:
            count = int(arguments[1])
        title = f"the judge on the renderer's own clips, {member.look.name}"
        yield from table(title, prove(48, member))
        yield from table("the judge on shuffled captions", prove(48, member, shuffled=True))
        scenes = held_out_scenes(count, member.motions)
        rows, clips = measure(member, scenes)
        yield from table(f"{member.name} on {count} prompts of held-out combinations", rows)
        if len(arguments) > 2:
            shown = clips[: 16 if member is PLAIN_MEMBER else 6]
            write_image(contact_sheet(shown), Path(arguments[2]))
            yield f"{arguments[2]}: the first {len(shown)} clips, one a row"


def table(title: str, rows: Sequence[Row]) -> Iterator[str]:
    """A Markdown table."""
    yield f"\n**{title}**\n"
    yield "| what | measured | of | wanted |"
    yield "|---|---|---|---|"
    for row in rows:
        yield f"| {row.name} | {row.right:.3f} | {row.count} | {row.wanted} |"


def held_out_scenes(count: int, motions: Sequence[str] = MOTIONS) -> list[Scene]:
    """Scenes whose colour, shape and background never met in training, all motions in turn."""
    rng = random.Random(2024)
    return [draw_scene(rng, held_out=True, motion=motions[i % len(motions)]) for i in range(count)]


def prove(count: int, member: Member = PLAIN_MEMBER, *, shuffled: bool = False) -> list[Row]:
    """The judge on the renderer's own clips; shuffled: with other captions, in all looks."""
    rng = random.Random(11)
    scenes = held_out_scenes(count, member.motions)
    asked, drawn = scenes, [member] * count
    if shuffled:
        asked = random.Random(3).sample(scenes, count)
        drawn = [MEMBERS[i % len(MEMBERS)] for i in range(count)]
    clips = [one.draw(scene, rng) for scene, one in zip(scenes, drawn, strict=True)]
    verdicts = [judge(s, clip, member.look) for s, clip in zip(asked, clips, strict=True)]
    return rows_of(asked, verdicts)


def measure(member: Member, scenes: Sequence[Scene]) -> tuple[list[Row], list[np.ndarray]]:
    """The model on these scenes: rows of the table, and the clips f h w 3."""
    jobs = [
        job_from_options({"preset": member.name, "prompt": member.caption(scene), "seed": seed})[0]
        for seed, scene in enumerate(scenes)
    ]
    placed = placed_model(jobs)
    clips = [clip_of(job, placed) for job in jobs]
    verdicts = [judge(s, as_tensor(c), member.look) for s, c in zip(scenes, clips, strict=True)]
    placed.animated.deflate()
    stills = [_stills(job, placed.base, placed.animated) for job in jobs]
    change = sum(v.change for v in verdicts) / max(sum(stills), 1e-9)
    rows = rows_of(scenes, verdicts) + _smoothness(member, scenes, change)
    return rows + _paths(scenes, verdicts), clips


def rows_of(scenes: Sequence[Scene], verdicts: Sequence[Verdict]) -> list[Row]:
    """Shares that came true, with what is wanted of them."""
    rows = []
    both = list(zip(scenes, verdicts, strict=True))
    for name in ("look", "background", "color", "shape", "place"):
        asked = [v for s, v in both if name != "place" or s.place]
        rows.append(_row(name, [getattr(v, name) for v in asked]))
    directions = [v.motion for s, v in both if s.motion in DIRECTIONS]
    sizes = [v.motion for s, v in both if s.motion in ("growing", "shrinking")]
    rows += [_row("direction", directions), _row("growing or shrinking", sizes)]
    rows += [_row(m, [v.motion for s, v in both if s.motion == m]) for m in MOTIONS if m]
    return [row for row in rows if row.count]


def _row(name: str, right: Sequence[bool]) -> Row:
    return share(name, right, f"{GATES[name]:.2f}" if name in GATES else "")


def share(name: str, right: Sequence[bool], wanted: str = "") -> Row:
    """A row with the share that is right."""
    return Row(name, sum(right) / max(len(right), 1), len(right), wanted)


def _smoothness(member: Member, scenes: Sequence[Scene], change: float) -> list[Row]:
    """Frame-to-frame change, beside that of the renderer's clips of the look."""
    drawn = drawn_change(member, scenes)
    plain = member is PLAIN_MEMBER
    most = f"at most {CHANGE:.2f}" if plain else ""
    as_plain = "" if plain else f"at most {1.1 * EXCESS:.3f}"
    return [
        Row("frame-to-frame change, share of single frames'", change, len(scenes), most),
        Row("the same of drawn clips of the look", drawn, DRAWS * len(scenes)),
        Row("the first as a multiple of the second", change / drawn, len(scenes), as_plain),
    ]


DRAWS = 8
"""Drawn clips of each scene."""


def drawn_change(member: Member, scenes: Sequence[Scene]) -> float:
    """The value of a perfect model of the look: the change within drawn clips, as a share of that
    between single frames of the same caption."""
    rng = random.Random(5)
    within = between = 0.0
    for scene in scenes:
        clips = [member.draw(scene, rng) for _ in range(DRAWS)]
        within += sum(float((clip[1:] - clip[:-1]).abs().mean()) for clip in clips) / DRAWS
        between += change_between(torch.stack([rng.choice(clip) for clip in clips]))
    return within / max(between, 1e-9)


def change_between(images: Tensor) -> float:
    """Mean absolute difference of a pixel over all pairs of n 3 h w, 0..1."""
    pairs = combinations(images, 2)
    return float(torch.stack([(one - other).abs().mean() for one, other in pairs]).mean())


def _paths(scenes: Sequence[Scene], verdicts: Sequence[Verdict]) -> list[Row]:
    """How far and how evenly the centre travels."""
    both = list(zip(scenes, verdicts, strict=True))
    paths = [v.path >= 0.05 for s, v in both if s.motion in DIRECTIONS]
    steps = [(s.motion == "bouncing", v.largest_step <= 0.10) for s, v in both]
    return [
        _row("path of the centre at least 5 %", paths),
        _row("no step of the centre over 10 %", [g for bounces, g in steps if not bounces]),
        _row("the same of bouncing, which is not learned well", [g for b, g in steps if b]),
    ]


def _stills(job: Job, base: BaseModel, animated: AnimatedUNet) -> float:
    """The change between frames that the image model alone makes of the prompt."""
    single = job.replace(frames=STILLS)
    latents = _still_latents(single, base, ImageUNet(base.unet), animated)
    return change_between(as_tensor(decode(base.vae, latents)))


def _still_latents(job: Job, base: BaseModel, still: ImageUNet, animated: AnimatedUNet) -> Tensor:
    height, width = (side // base.vae_scale_factor for side in (job.height, job.width))
    config = animated.motion.config
    scheduler = make_scheduler(job.scheduler, config, prediction_type=base.prediction_type)
    return denoise(
        still,
        scheduler,
        draw_noise(job.seed, (1, 4, job.frames, height, width)),
        embed_prompt(base, job.prompt, job.frames).tokens,
        embed_prompt(base, {0: ""}, job.frames).tokens,
        steps=job.steps,
        guidance_scale=job.guidance_scale,
        generator=seeded(job.seed ^ 1),
    )


def placed_model(jobs: Sequence[Job]) -> PlacedModel:
    """The bundled model of these jobs, on the CPU in fp32."""
    found = plan(jobs)[0].found
    assert all(spec_of(job) == found.spec for job in jobs)
    placement = Placement(torch.device("cpu"), torch.float32)
    parts = load_model(found, dtype=placement.dtype, offline=True)
    return PlacedModel(*parts, placement, offline=True)


def clip_of(job: Job, model: PlacedModel) -> np.ndarray:
    """One clip as `generate` makes it: f h w 3 uint8."""
    *_, frames = sample(job, model)
    assert isinstance(frames, np.ndarray)
    return frames


def as_tensor(frames: np.ndarray) -> Tensor:
    """f h w 3 uint8 -> f 3 h w in [0, 1]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
