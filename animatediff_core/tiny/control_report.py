"""Measures how conditioning inputs guide the bundled model, on scenes of held-out combinations.

`python -m animatediff_core.tiny measure-control [COUNT]` prints a Markdown table.

Shapes: f frames, h w pixels.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..jobs import job_from_options
from ..media.edges import canny
from ..media.image import write_image
from ..sampling.placement import PlacedModel
from .measure import judge, observe
from .renderer import coverage, render
from .report import Row, as_tensor, clip_of, held_out_scenes, placed_model, share, table
from .world import COLORS, SHAPES, Pose, Scene, poses

STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
IP_ADAPTER = {
    "path": "bundled:tiny/picture.safetensors",
    "encoder": "bundled:tiny/image_encoder",
}


def main(arguments: Sequence[str]) -> Iterator[str]:
    """Lines of the report; the count is that of clips for each row, 40 where none is given."""
    count = int(arguments[0]) if arguments else 40
    model = placed_model(job_from_options({"prompt": "a"}))
    with TemporaryDirectory() as folder:
        rows = [row for part in PARTS for row in part(model, count, Path(folder))]
    yield from table(f"conditioning inputs, {count} clips of held-out combinations each", rows)


def sampled(model: PlacedModel, prompt: str, seed: int, **settings: Any) -> Tensor:
    """One clip as `generate` makes it: f 3 h w in [0, 1]."""
    (job,) = job_from_options({"prompt": prompt, "seed": seed, **settings})
    return as_tensor(clip_of(job, model))


@dataclass(frozen=True)
class Drawn:
    """A held-out scene and a clip of it, drawn."""

    scene: Scene
    path: list[Pose]
    clip: Tensor
    """f 3 h w in [0, 1]."""


def drawn_scenes(count: int) -> list[Drawn]:
    """Held-out scenes with a path of their own each."""
    found = []
    for number, scene in enumerate(held_out_scenes(count)):
        path = poses(scene, random.Random(f"lead {number}"))
        found.append(Drawn(scene, path, render(scene, path)))
    return found


def edges(model: PlacedModel, count: int, folder: Path) -> list[Row]:
    """Edges of a drawn clip as the ControlNet's condition, beside the same job without it.

    The prompts say what there is, but nothing of size, place and motion: those the edges tell.
    """
    guided, alone, shapes, moved = [], [], [], []
    for number, one in enumerate(drawn_scenes(count)):
        prompt = replace(one.scene, size="", place="", motion="").caption()
        images = str(_written(one.clip, folder / f"edges-{number}"))
        net = {"path": "bundled:tiny/edges.safetensors", "canny": True, "images": images}
        clip = sampled(model, prompt, number, controlnets=[net])
        guided.append(edge_f1(one.clip, clip))
        alone.append(edge_f1(one.clip, sampled(model, prompt, number)))
        verdict = judge(one.scene, clip)
        shapes.append(verdict.shape)
        moved.append(verdict.motion)
    return [
        Row("ControlNet: F1 of edges", sum(guided) / count, count, "at least 0.6"),
        Row("the same without it", sum(alone) / count, count, "below 0.3"),
        share("ControlNet: shape", shapes),
        share("ControlNet: the condition's motion", moved),
    ]


def images(model: PlacedModel, count: int, folder: Path) -> list[Row]:
    """A drawn image as the only prompt, through the IP-Adapter."""
    rights: dict[str, list[bool]] = {"background": [], "color": [], "shape": []}
    for number, one in enumerate(drawn_scenes(count)):
        (path,) = _written(one.clip[:1], folder / f"picture-{number}").iterdir()
        adapter = {**IP_ADAPTER, "images": str(path)}
        verdict = judge(one.scene, sampled(model, "", number, ip_adapters=[adapter]))
        for name, right in rights.items():
            right.append(getattr(verdict, name))
    wanted = {"background": "0.90", "color": "0.90", "shape": "0.70"}
    return [share(f"IP-Adapter: {name}", right, wanted[name]) for name, right in rights.items()]


def first_frames(model: PlacedModel, count: int, folder: Path) -> list[Row]:
    """A drawn image as the first frame."""
    decibels, moved = [], []
    for number, one in enumerate(drawn_scenes(count)):
        (path,) = _written(one.clip[:1], folder / f"first-{number}").iterdir()
        clip = sampled(model, one.scene.caption(), number, keyframes={"images": {0: str(path)}})
        decibels.append(_decibel(clip[0], one.clip[0]))
        moved.append(judge(one.scene, clip).motion)
    return [
        Row("image to video: least PSNR of the first frame, dB", min(decibels), count, "25"),
        share("image to video: motion", moved),
    ]


def masks(model: PlacedModel, count: int, folder: Path) -> list[Row]:
    """The thing of a drawn video made anew in another colour, under a mask that follows it."""
    rights, kept = [], []
    for number, one in enumerate(drawn_scenes(count)):
        others = [c for c in COLORS if c not in (one.scene.color, one.scene.background)]
        color = random.Random(number).choice(others)
        scene = replace(one.scene, color=color)
        mask = _mask(one)
        video = str(_written(one.clip, folder / f"inpainted-{number}"))
        mask_images = str(_written(mask.expand(-1, 3, -1, -1), folder / f"mask-{number}"))
        start = {"images": video, "strength": 1.0, "mask": mask_images}
        clip = sampled(model, scene.caption(), number, start=start)
        seen = [observe(image).color for image in clip]
        rights.append(2 * seen.count(color) > len(seen))
        kept.append(_decibel(clip, one.clip, _outside(mask)))
    return [
        share("inpainting: colour under the mask", rights, "0.90"),
        Row("inpainting: median PSNR outside it, dB", float(np.median(kept)), count),
    ]


def strengths(model: PlacedModel, count: int, folder: Path) -> list[Row]:
    """How far a clip goes from the video that it is made from, by strength."""
    count = max(1, count // 4)
    distances = np.zeros(len(STRENGTHS))
    for number, one in enumerate(drawn_scenes(count)):
        video = str(_written(one.clip, folder / f"video-{number}"))
        other = held_out_scenes(count + 1)[number + 1].caption()
        for i, strength in enumerate(STRENGTHS):
            clip = sampled(model, other, number, start={"images": video, "strength": strength})
            distances[i] += float((clip - one.clip).pow(2).mean()) / count
    rises = [a < b for a, b in zip(distances, distances[1:], strict=False)]
    text = ", ".join(f"{d**0.5:.3f}" for d in distances)
    name = f"video to video: distance at strength {STRENGTHS[0]} to 1 ({text}) rises"
    return [share(name, rises, "1.00")]


PARTS = (edges, images, first_frames, masks, strengths)


def edge_f1(wanted: Tensor, found: Tensor, tolerance: int = 1) -> float:
    """F1 of two clips' edges (f 3 h w in [0, 1]): an edge is right within `tolerance` pixels."""
    a, b = (torch.stack([_edges(image) for image in clip]) for clip in (wanted, found))

    def matched(of: Tensor, near: Tensor) -> float:
        wide = F.max_pool2d(near.unsqueeze(1), 2 * tolerance + 1, 1, tolerance).squeeze(1)
        return float((of * wide).sum() / of.sum().clamp_min(1))

    precision, recall = matched(b, a), matched(a, b)
    return 2 * precision * recall / max(precision + recall, 1e-9)


def _edges(image: Tensor) -> Tensor:
    """h w, 0 or 1."""
    pixels = (image.permute(1, 2, 0) * 255).round().byte().numpy()
    return torch.from_numpy(canny(pixels)[..., 0] > 0).float()


def _mask(one: Drawn) -> Tensor:
    """The drawn thing with a rim around it: f 1 h w, 0 or 1."""
    x, y, radius = torch.tensor([(p.x, p.y, p.radius) for p in one.path]).T
    cover = coverage(x, y, radius, one.clip.shape[-1])[:, SHAPES.index(one.scene.shape)]
    return F.max_pool2d((cover > 0).float().unsqueeze(1), 9, 1, 4)


def _outside(mask: Tensor) -> Tensor:
    """Pixels that no latent of the mask reaches, without a rim of two latents: f 1 h w."""
    return 1 - F.max_pool2d(mask, 17, 1, 8)


def _decibel(a: Tensor, b: Tensor, where: Tensor | None = None) -> float:
    """PSNR of two clips f 3 h w, or of the pixels where a mask f 1 h w is 1."""
    errors = (a - b).pow(2)
    mean = errors.mean() if where is None else (errors * where).sum() / (where.sum() * 3)
    return float(-10 * mean.clamp_min(1e-10).log10())


def _written(clip: Tensor, folder: Path) -> Path:
    """The frames as images in a folder."""
    folder.mkdir()
    pixels = (clip.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    for number, image in enumerate(pixels):
        write_image(image, folder / f"{number:02}.png")
    return folder
