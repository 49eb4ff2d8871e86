"""The tiny world: one coloured thing on a coloured ground, doing what its caption says.

A motion module reads no text. It can follow "moving right" only if the frozen image model's
features carry those words, so every named motion has a still cue that the image model learns:
light falls on the image from where the thing is heading, from the middle when it grows, from
the rim when it shrinks, from above and below when it bounces.
"""

import random
from dataclasses import dataclass
from itertools import product
from math import cos, pi, sin

SHAPES = ("circle", "square", "triangle", "star", "ring")
COLORS = {
    "red": (214, 40, 40),
    "green": (40, 160, 70),
    "blue": (40, 80, 220),
    "yellow": (240, 200, 50),
    "white": (225, 225, 225),
    "black": (30, 30, 30),
}
SIZES = {"small": 0.125, "": 0.17, "large": 0.215}
"""Radius as a share of the width; no word means middling."""
PLACES = {
    "": (None, None),
    "on the left": (0.3, None),
    "on the right": (0.7, None),
    "at the top": (None, 0.3),
    "at the bottom": (None, 0.7),
    "in the middle": (0.5, 0.5),
}
"""Centre as a share of width and height; None is free."""
DIRECTIONS = {
    "moving left": (-1, 0),
    "moving right": (1, 0),
    "moving up": (0, -1),
    "moving down": (0, 1),
}
MOTIONS = ("", *DIRECTIONS, "growing", "shrinking", "bouncing")
EXTENT = 1.3
"""Half the bounding box of the widest shape, in radii."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The content of a caption."""

    color: str
    """Colour of the thing, a key of COLORS."""
    shape: str
    """One of SHAPES."""
    background: str
    """Colour of the ground, a key of COLORS, not the thing's."""
    size: str = ""
    """A key of SIZES."""
    place: str = ""
    """A key of PLACES; for a moving thing across its path only."""
    motion: str = ""
    """One of MOTIONS."""

    def caption(self, rng: random.Random | None = None) -> str:
        """The plain caption, or with `rng` one of the wordings that training texts use."""
        thing = ["a", self.size, self.color, self.shape]
        what = [self.place, self.motion]
        ground = ["on a", self.background, "background"]
        if rng is not None:
            thing[0] = rng.choice(["a", "a", "the", ""])
            ground = rng.choice([ground, ground, ["on", self.background]])
            if rng.random() < 0.3:
                what.reverse()
        return " ".join(word for word in (*thing, *what, *ground) if word)


@dataclass(frozen=True)
class Pose:
    """Where the thing is in one frame, in shares of the width."""

    x: float
    y: float
    radius: float


def combinations(*, held_out: bool) -> list[tuple[str, str, str]]:
    """Colour, shape, background triples: every fifth is held out from all training."""
    triples = [t for t in product(COLORS, SHAPES, COLORS) if t[0] != t[2]]
    random.Random(7).shuffle(triples)
    return [t for i, t in enumerate(triples) if (i % 5 == 0) == held_out]


def draw_scene(rng: random.Random, *, held_out: bool = False, motion: str | None = None) -> Scene:
    """A random scene of the seen or the held-out combinations."""
    color, shape, background = rng.choice(combinations(held_out=held_out))
    if motion is None:
        motion = rng.choice(MOTIONS)
    size = "" if motion in ("growing", "shrinking") else rng.choice(["", "", *SIZES])
    place = rng.choice(_places_for(motion)) if rng.random() < 0.5 else ""
    return Scene(
        color=color, shape=shape, background=background, size=size, place=place, motion=motion
    )


def _places_for(motion: str) -> list[str]:
    """The places that say nothing about where along its path a moving thing is."""
    if motion in ("moving left", "moving right"):
        return ["at the top", "at the bottom"]
    if motion in ("moving up", "moving down", "bouncing"):
        return ["on the left", "on the right"]
    return [p for p in PLACES if p]


def poses(
    scene: Scene, rng: random.Random, frames: int = 16, *, radius: float | None = None
) -> list[Pose]:
    """One path of `frames` poses that keeps the thing in view and shows the scene's motion.

    `radius` is used for the scene's size.
    """
    steps = [i / max(frames - 1, 1) for i in range(frames)]
    radius = (radius or SIZES[scene.size]) * rng.uniform(0.94, 1.06)
    small, big = rng.uniform(0.095, 0.12), rng.uniform(0.2, 0.235)
    widest = big if scene.motion in ("growing", "shrinking") else radius
    low, high = EXTENT * widest + 0.02, 1 - EXTENT * widest - 0.02
    x, y = (
        rng.uniform(low, high) if share is None else _near(share, rng, low, high)
        for share in PLACES[scene.place]
    )
    if scene.motion == "growing":
        return [Pose(x, y, small + (big - small) * s) for s in steps]
    if scene.motion == "shrinking":
        return [Pose(x, y, big + (small - big) * s) for s in steps]
    if scene.motion == "bouncing":
        height = min(rng.uniform(0.18, 0.25), high - low)
        floor, bounces, phase = rng.uniform(low + height, high), rng.uniform(1.0, 1.3), rng.random()
        return [
            Pose(x, floor - height * abs(sin(pi * (bounces * s + phase))), radius) for s in steps
        ]
    if scene.motion in DIRECTIONS:
        toward_x, toward_y = map(float, DIRECTIONS[scene.motion])
        way = rng.uniform(0.28, min(0.5, high - low))
    else:
        angle = rng.uniform(0, 2 * pi)
        toward_x, toward_y, way = cos(angle), sin(angle), rng.uniform(0.1, 0.18)
    x = _start(x, toward_x * way, low, high)
    y = _start(y, toward_y * way, low, high)
    return [Pose(x + toward_x * way * s, y + toward_y * way * s, radius) for s in steps]


def _near(share: float, rng: random.Random, low: float, high: float) -> float:
    return min(max(share + rng.uniform(-0.04, 0.04), low), high)


def _start(place: float, way: float, low: float, high: float) -> float:
    """Shift a path of signed length `way` as little as needed to stay between low and high."""
    room_low, room_high = low - min(way, 0.0), high - max(way, 0.0)
    if abs(way) < 0.1:
        return min(max(place - way / 2, room_low), room_high)
    return room_low + (place - low) / (high - low) * (room_high - room_low)
