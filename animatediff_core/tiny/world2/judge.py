"""Says what a clip shows: a small network that has learned from the renderer alone.

Its clips show the still cues of other motions than their own, so that it has to judge motion by
what changes from frame to frame. Some are blurred and noisy. It looks at every second frame of
half the size.

Legend: b clips, f frames, n images, d features.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .family import Family
from .judge_network import MOVING
from .scenes import ATTRIBUTES, Scenes, draw_scenes


def other_cues(scenes: Scenes) -> Scenes:
    """The scenes with the motions and cameras of their neighbours, as far as cues go."""
    moved = {name: getattr(scenes, name).roll(1) for name in MOVING}
    return Scenes(**{**vars(scenes), **moved})


def judged_clips(family: Family, count: int) -> tuple[Tensor, Tensor]:
    """Every second frame of clips with the cues of others, b f 3 h w, and their labels."""
    scenes = draw_scenes(count, family.device)
    clips = family.renderer.clips(scenes, family.sizes.frames // 2, other_cues(scenes))
    blurred = F.avg_pool2d(clips.flatten(0, 1), 5, 1, 2).unflatten(0, clips.shape[:2])
    lot = torch.rand(count, 2, 1, 1, 1, 1, device=family.device)
    clips = torch.lerp(clips, blurred, (lot[:, 0] * 2 - 1).clamp(0, 1))
    return clips + 0.05 * lot[:, 1] * torch.randn_like(clips), scenes.labels()


def judge_loss(family: Family, count: int) -> Tensor:
    """Cross-entropy summed over attributes."""
    with torch.no_grad():
        clips, labels = judged_clips(family, count)
    total = torch.zeros((), device=family.device)
    scores = family.judge(clips.to(family.dtype))
    for part, label in zip(scores, labels.unbind(1), strict=True):
        losses = F.cross_entropy(part, label, ignore_index=-1, reduction="sum")
        total = total + losses / count
    return total


def verdicts(family: Family, clips: Tensor) -> Tensor:
    """The value of each attribute that the judge sees: b a.

    clips: b f 3 h w in [0, 1], every second frame. Single frames say nothing about MOVING.
    """
    scores = [family.judge(part.to(family.dtype)) for part in clips.split(64)]
    return torch.cat([torch.stack([s.argmax(1) for s in part], 1) for part in scores])


def right(family: Family, clips: Tensor, labels: Tensor) -> dict[str, float]:
    """Share of clips that show what each attribute says, where it is named."""
    seen, named = verdicts(family, clips), labels >= 0
    shares = ((seen == labels) & named).sum(0) / named.sum(0)
    still = clips.shape[1] == 1
    return {
        name: float(share)
        for name, share in zip(ATTRIBUTES, shares, strict=True)
        if not (still and name in MOVING)
    }


def judge_gate(family: Family) -> tuple[str, Tensor]:
    """How often it is right on new clips, and on shuffled labels."""
    found = [judged_clips(family, 2 * family.recipes["judge"].batch) for _ in range(8)]
    clips, labels = (torch.cat(part) for part in zip(*found, strict=True))
    truth, chance = right(family, clips, labels), right(family, clips, labels.roll(1, 0))
    lines = [f"{name} {truth[name]:.3f} ({chance[name]:.2f})" for name in truth]
    return "right (shuffled): " + ", ".join(lines), clips[::16]
