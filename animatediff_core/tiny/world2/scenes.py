"""Random scenes of world 2 and their captions, a batch at a time on any device.

Legend: b scenes, i things of a scene (2; the second may be absent), p phrases of a caption.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .words import (
    BACKGROUNDS,
    CAMERAS,
    COLORS,
    DIRECTIONS,
    END,
    MOTIONS,
    PHRASES,
    SHAPES,
    START,
    TOKENS,
    WORDS,
)

CHANCES = 24
"""Free numbers of each scene, for all that its caption does not say."""
ATTRIBUTES = ("color", "color2", "shape", "shape2", "pattern", "relation", "size", "background",
              "weather", "motion", "camera")  # fmt: skip
COUNTS = (len(COLORS), len(COLORS), len(SHAPES), len(SHAPES), 3, 3, 3, len(BACKGROUNDS), 3,
          len(MOTIONS), len(CAMERAS))  # fmt: skip
_TURNING, _ORBITING = MOTIONS.index("turning"), MOTIONS.index("orbiting")
_RESIZING = MOTIONS.index("growing")
_CHANGING = len(DIRECTIONS)


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes: values of the attributes as indices, b each."""

    color: Tensor
    color2: Tensor
    shape: Tensor
    shape2: Tensor
    pattern: Tensor
    relation: Tensor
    """0 one thing, 1 the first left of the second, 2 right of it."""
    size: Tensor
    background: Tensor
    weather: Tensor
    motion: Tensor
    camera: Tensor
    chances: Tensor
    """b CHANCES, uniform in [0, 1)."""

    def labels(self) -> Tensor:
        """b attributes, in the order of ATTRIBUTES; -1 for what a caption does not name."""
        values = torch.stack([getattr(self, name) for name in ATTRIBUTES], 1)
        second = torch.zeros_like(values, dtype=torch.bool)
        second[:, 1] = second[:, 3] = True
        return torch.where(second & (self.relation == 0).unsqueeze(1), -1, values)

    def repeat(self, frames: int) -> "Scenes":
        """Each scene so many times in a row."""
        if frames == 1:
            return self
        return Scenes(**{k: v.repeat_interleave(frames, 0) for k, v in vars(self).items()})


def draw_scenes(
    count: int,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
    *,
    held_out: bool = False,
) -> Scenes:
    """Random scenes; every fifth combination of colour, shape and background is held out."""

    def any_of(number: int) -> Tensor:
        return torch.randint(number, (count,), device=device, generator=generator)

    def chance() -> Tensor:
        return torch.rand(count, device=device, generator=generator)

    kind = chance()
    motion = torch.where(kind < 0.62, 1 + any_of(len(MOTIONS) - 1), 0)
    camera = torch.where((kind >= 0.62) & (kind < 0.9), 1 + any_of(len(CAMERAS) - 1), 0)
    two = (chance() < 0.25) & (motion != _ORBITING)
    color, shape, background = any_of(len(COLORS)), any_of(len(SHAPES)), any_of(len(BACKGROUNDS))
    shape2 = (shape + 1 + any_of(len(SHAPES) - 1)) % len(SHAPES)
    turned = (motion == _TURNING).long()  # what is round has no visible turn
    shape, shape2 = _angular(shape, turned), _angular(shape2, turned)
    unseen = (color + 2 * shape + 3 * background) % 5
    if held_out:
        rest = -(2 * shape + 3 * background) % 5
        color = rest + 5 * any_of(2) * (rest + 5 < len(COLORS))
    else:
        color = torch.where(unseen == 0, (color + 1) % len(COLORS), color)
    resizing = (motion == _RESIZING) | (motion == _RESIZING + 1)
    falling = chance()
    weather = (falling < 0.2).long() + (falling < 0.1).long()
    return Scenes(
        color=color,
        color2=(color + 1 + any_of(len(COLORS) - 1)) % len(COLORS),
        shape=shape,
        shape2=shape2,
        pattern=torch.where(two | (chance() < 0.5), 0, any_of(3)),
        relation=torch.where(two, 1 + any_of(2), 0),
        size=torch.where(two | resizing | (chance() < 0.4), 0, any_of(3)),
        background=background,
        weather=torch.where(background == BACKGROUNDS.index("studio"), 0, weather),
        motion=motion,
        camera=camera,
        chances=torch.rand(count, CHANCES, device=device, generator=generator),
    )


def _angular(shape: Tensor, turned: Tensor) -> Tensor:
    circle, ring = SHAPES.index("circle"), SHAPES.index("ring")
    return shape + turned * ((shape == circle) * 1 - (shape == ring) * 2)


class Captions(nn.Module):
    """Tables that turn scenes into phrases, and phrases into token ids."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.phrases: list[str] = [""]
        for name, values in PHRASES.items():
            first = []
            for wordings in values:
                first.append(len(self.phrases))
                self.phrases += wordings
            self.register_buffer(f"{name}_first", torch.tensor(first))
            self.register_buffer(f"{name}_count", torch.tensor([len(v) for v in values]))
        words = [[WORDS.index(w) for w in phrase.split()] for phrase in self.phrases]
        longest = max(map(len, words))
        table = [[*row, *[-1] * (longest - len(row))] for row in words]
        self.register_buffer("table", torch.tensor(table))

    def choose(self, scenes: Scenes, chances: Tensor) -> Tensor:
        """One wording for each scene: b p. chances: b 16, uniform in [0, 1)."""
        two = scenes.relation > 0

        def say(name: str, value: Tensor, slot: int) -> Tensor:
            count: Tensor = getattr(self, f"{name}_count")[value]
            first: Tensor = getattr(self, f"{name}_first")[value]
            return first + (chances[:, slot] * count).long()

        none = torch.zeros_like(scenes.color)
        thing = [
            say("article", none, 0),
            *(
                say(name, getattr(scenes, name), slot)
                for slot, name in enumerate(("size", "pattern", "color", "shape", "relation"), 1)
            ),
        ]
        second = [
            torch.where(two, say(name, value, slot), 0)
            for name, value, slot in (
                ("article", none, 6),
                ("color", scenes.color2, 7),
                ("shape", scenes.shape2, 8),
            )
        ]
        motion = say("motion", scenes.motion, 9)
        background = say("background", scenes.background, 10)
        swapped = chances[:, 11] < 0.25
        last = [
            torch.where(swapped, background, motion),
            torch.where(swapped, motion, background),
            say("weather", scenes.weather, 12),
            say("camera", scenes.camera, 13),
        ]
        return torch.stack([*thing, *second, *last], 1)

    def ids(self, chosen: Tensor) -> Tensor:
        """Token ids of captions, b TOKENS: start, words, end and its repetitions."""
        words = self.table[chosen].flatten(1)
        order = (words < 0).to(torch.int8).argsort(dim=1, stable=True)
        packed = words.gather(1, order)[:, : TOKENS - 2]
        packed = torch.where(packed < 0, END, packed)
        start = torch.full_like(packed[:, :1], START)
        out = torch.cat([start, packed], 1)
        return nn.functional.pad(out, (0, TOKENS - out.shape[1]), value=END)

    def text(self, chosen: Tensor) -> list[str]:
        """The captions in words."""
        rows = chosen.tolist()
        return [" ".join(p for i in row if (p := self.phrases[i])) for row in rows]
