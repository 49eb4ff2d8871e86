"""Figures of a trained family on captions of held-out combinations, and of its judge.

Legend: b clips, f frames, a attributes.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ...motion import inflate
from .family import Family
from .gates import held_out, sample, save_sheet
from .judge import judge_gate, verdicts
from .scenes import ATTRIBUTES, Scenes
from .words import CAMERAS, MOTIONS

TOGETHER = 4
"""Clips sampled in one batch."""


@torch.no_grad()
def measure(family: Family, count: int, steps: int) -> Iterator[str]:
    """The judge on the renderer's clips, then what it sees in `count` sampled clips."""
    yield f"judge: {judge_gate(family)[0]}"
    scenes = held_out(family, count)
    animated = inflate(family.unet, family.motion)
    side = family.sizes.pixels // 8
    clips = []
    for number in range(0, count, TOGETHER):
        some = Scenes(**{k: v[number : number + TOGETHER] for k, v in vars(scenes).items()})
        shape = (len(some.color), 4, family.sizes.frames, side, side)
        noise = torch.randn(shape, device=family.device)
        latents = sample(family, animated, some, noise, steps).transpose(1, 2)
        clips.append(family.decode(latents.flatten(0, 1)).unflatten(0, shape[:1] + shape[2:3]))
        yield f"{number + shape[0]} of {count} clips"
    animated.deflate()
    sampled, drawn = torch.cat(clips), family.renderer.clips(scenes, family.sizes.frames)
    save_sheet(sampled, family.folder / "measure.png")
    for name, shown in (("drawn", drawn), ("sampled", sampled)):
        seen = verdicts(family, shown[:, ::2])
        yield f"{name}: {_table(seen, scenes.labels())}"
        yield f"{name}, shuffled captions: {_table(seen, scenes.labels().roll(1, 0))}"
        yield f"{name}: {_by_value(seen, scenes)}"
    ratio = _change(sampled) / _change(drawn)
    yield f"change from frame to frame: {ratio:.2f} times that of drawn clips"


def _table(seen: Tensor, labels: Tensor) -> str:
    """Share right of each attribute where it is named; of pairs, where everything is."""
    right = (seen == labels) & (labels >= 0)  # b a
    shares = [
        f"{name} {int(right[:, i].sum())}/{int((labels[:, i] >= 0).sum())}"
        for i, name in enumerate(ATTRIBUTES)
    ]
    pair = labels[:, 1] >= 0
    both = right[:, :4].all(1) & right[:, 5] & pair
    return ", ".join([*shares, f"two things told apart {int(both.sum())}/{int(pair.sum())}"])


def _by_value(seen: Tensor, scenes: Scenes) -> str:
    """Share right of each motion and each move of the camera."""
    shares = []
    for attribute, values in (("motion", MOTIONS), ("camera", CAMERAS)):
        wanted, found = getattr(scenes, attribute), seen[:, ATTRIBUTES.index(attribute)]
        for i, value in enumerate(values):
            those = wanted == i
            right = int((found == wanted)[those].sum())
            shares.append(f"{value or 'no ' + attribute} {right}/{int(those.sum())}")
    return ", ".join(shares)


def _change(clips: Tensor) -> float:
    return float(clips.diff(dim=1).abs().mean())
