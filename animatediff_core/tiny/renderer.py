"""Draws scenes of the tiny world with signed distances and analytic antialiasing.

A look changes how everything is drawn, not what: the members of the tiny family are trained on
looks that neither the base model nor its motion module has seen.

Shapes: n images, s shapes, h w pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .world import COLORS, SHAPES, Pose, Scene

LIGHT = 0.11
"""Brightness added where the light is strongest, taken away where weakest; 1 is white."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """How things are drawn."""

    name: str = "plain"
    lean: float = 0.0
    """How far the top of things leans to the right, in shares of their height."""
    slim: float = 1.0
    """Width of things as a share of what the base model draws."""
    radius: float | None = None
    """Size of every thing, a share of the width; none is what the caption says."""


PLAIN = Look()


def render(scene: Scene, poses: Sequence[Pose], size: int = 64, look: Look = PLAIN) -> Tensor:
    """A clip of one scene: f 3 h w in [0, 1]."""
    return render_batch([scene] * len(poses), poses, size, look)


def render_batch(
    scenes: Sequence[Scene], poses: Sequence[Pose], size: int = 64, look: Look = PLAIN
) -> Tensor:
    """One image for each scene and pose: n 3 h w in [0, 1]."""
    x, y, radius = torch.tensor([(p.x, p.y, p.radius) for p in poses]).T  # n each
    cover = coverage(x, y, radius, size, look)  # n s h w
    pick = torch.tensor([SHAPES.index(s.shape) for s in scenes])
    cover = cover[torch.arange(len(scenes)), pick].unsqueeze(1)  # n 1 h w
    thing = _palette([COLORS[s.color] for s in scenes])
    ground = _palette([COLORS[s.background] for s in scenes])
    image = ground + (thing - ground) * cover
    fields = _light_fields(size)
    light = torch.stack([fields[s.motion] for s in scenes]).unsqueeze(1)
    return (image + LIGHT * light).clamp(0, 1)


def coverage(x: Tensor, y: Tensor, radius: Tensor, size: int, look: Look = PLAIN) -> Tensor:
    """Share of each pixel that each shape covers, for centres and radii in shares of the width.

    x, y, radius: n -> n s h w in [0, 1], shapes in the order of SHAPES. A look's own radius is for
    whoever chooses the poses.
    """
    axis = (torch.arange(size) + 0.5) / size
    r = radius.view(-1, 1, 1)
    dx = (axis.view(1, 1, -1) - x.view(-1, 1, 1)).expand(-1, size, -1) / r
    dy = (axis.view(1, -1, 1) - y.view(-1, 1, 1)).expand(-1, -1, size) / r
    dx = (dx + look.lean * dy) / look.slim
    distance = torch.stack([shape(dx, dy) for shape in _DISTANCES.values()], dim=1)
    distance = distance * r.unsqueeze(1)  # shares of the width
    return (0.5 - distance * size).clamp(0, 1)


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 1.0


def _square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.9


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    """Point up, centroid in the middle."""
    inner = 0.65
    slope = math.sqrt(3) / 2 * x.abs() - 0.5 * y
    return torch.maximum(y, slope) - inner


def _star(x: Tensor, y: Tensor, outer: float = 1.3, inner: float = 0.55) -> Tensor:
    """Five points: in each of ten mirrored wedges the edge is one straight line."""
    wedge = math.pi / 5
    angle = torch.atan2(x, -y).abs()
    angle = (angle + wedge) % (2 * wedge) - wedge
    length = torch.hypot(x, y)
    along, across = length * angle.cos(), length * angle.sin().abs()
    edge = (inner * math.cos(wedge) - outer, inner * math.sin(wedge))
    norm = math.hypot(*edge)
    return ((along - outer) * edge[1] - across * edge[0]) / norm


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.8).abs() - 0.28


_DISTANCES = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
}
assert tuple(_DISTANCES) == SHAPES

LOOKS = (
    PLAIN,
    Look(name="slanted", lean=0.7),
    Look(name="slim", slim=0.6),
    Look(name="giant", radius=0.29),
)
"""The base model's look, then one for each member of the family."""


def _palette(colors: Sequence[tuple[int, int, int]]) -> Tensor:
    return torch.tensor(colors).view(-1, 3, 1, 1) / 255


def _light_fields(size: int) -> dict[str, Tensor]:
    """Where the light falls for each motion: h w in [-1, 1]."""
    axis = torch.linspace(-1, 1, size)
    u, v = axis.expand(size, size), axis.view(-1, 1).expand(size, size)
    middle = 1 - 2 * (torch.hypot(u, v) / math.sqrt(2))
    return {
        "": torch.zeros(size, size),
        "moving left": -u,
        "moving right": u,
        "moving up": -v,
        "moving down": v,
        "growing": middle,
        "shrinking": -middle,
        "bouncing": 2 * v.abs() - 1,
    }
