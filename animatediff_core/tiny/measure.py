"""Does an image or clip show what its caption says? Statistics of pixels, no learned judge.

Colours are medians, shape and place come from matching the renderer's own templates, motion from
tracking the matched place and size. The look is the one whose templates fit best.
`report.prove` shows that the judge itself is right on the renderer's own work and at chance when
the captions are shuffled.

Legend: f frames, h w pixels, g tried places and sizes, s shapes, k colours.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from .renderer import LOOKS, PLAIN, Look, coverage
from .world import COLORS, DIRECTIONS, EXTENT, PLACES, SHAPES, Scene

SIZE = 64
_NAMES = tuple(COLORS)
LARGER = 0.245
"""No thing of the plain look is as large, shares of the width."""
_PALETTE = torch.tensor([COLORS[n] for n in _NAMES]) / 255


@dataclass(frozen=True)
class Seen:
    """The content of one image."""

    background: str
    color: str
    shape: str
    x: float
    """Centre as a share of the width."""
    y: float
    radius: float
    """Share of the width; 0 where nothing was found."""


def observe(image: Tensor, look: Look = PLAIN) -> Seen:
    """Identify colours, shape, place and size in an image 3 h w in [0, 1] of this look."""
    ground, core, mask = _thing(image)
    if mask is None:
        return Seen(_NAMES[ground], "none", "none", 0.5, 0.5, 0.0)
    shape, x, y, radius, _ = _match(mask, look)
    return Seen(_NAMES[ground], _NAMES[core], shape, x, y, radius)


def look_of(image: Tensor) -> str:
    """The look whose templates fit best, of LOOKS; looks of one form differ by their size."""
    mask = _thing(image)[2]
    if mask is None:
        return "none"
    matches = {look.name: _match(mask, look) for look in LOOKS if look.radius is None}
    best = max(matches, key=lambda name: matches[name][4])
    if best == PLAIN.name and matches[best][3] > LARGER:
        return next(look.name for look in LOOKS if look.radius is not None)
    return best


def _thing(image: Tensor) -> tuple[int, int, Tensor | None]:
    """Numbers of the ground's and the thing's colours, and how far each pixel is the thing's.

    The mask is h w in [0, 1], None where there is no thing.
    """
    border = torch.cat(
        [
            edge.flatten(1)
            for edge in (image[:, :3], image[:, -3:], image[:, :, :3], image[:, :, -3:])
        ],
        dim=1,
    )
    ground = _nearest(border.median(1).values)
    distance = (image.unsqueeze(0) - _PALETTE.view(-1, 3, 1, 1)).pow(2).sum(1).sqrt()  # k h w
    nearest = distance.argmin(0)
    away = nearest != ground
    if away.sum() < 12:
        return ground, ground, None
    counts = torch.bincount(nearest[away], minlength=len(_NAMES))
    core = int(counts.argmax())
    thing = image[:, nearest == core].median(1).values
    base = border.median(1).values
    along = (thing - base).view(3, 1, 1)
    share = ((image - base.view(3, 1, 1)) * along).sum(0) / along.pow(2).sum().clamp_min(1e-6)
    return ground, core, share.clamp(0, 1) * (share > 0.3)


def _nearest(color: Tensor) -> int:
    return int((_PALETTE - color).pow(2).sum(1).argmin())


def _match(mask: Tensor, look: Look) -> tuple[str, float, float, float, float]:
    """The template that overlaps a soft mask (h w) best: shape, place, size and overlap, 0..1."""
    axis = (torch.arange(SIZE) + 0.5) / SIZE
    total = mask.sum().clamp_min(1e-6)
    x, y = float((mask.sum(0) * axis).sum() / total), float((mask.sum(1) * axis).sum() / total)
    radius = _radius(float(total) / SIZE**2, look)
    shifts = torch.linspace(-0.03, 0.03, 5)
    scales = torch.linspace(0.75, 1.45, 15)
    grid = torch.cartesian_prod(shifts + x, shifts + y, scales * radius)
    cover = coverage(grid[:, 0], grid[:, 1], grid[:, 2], SIZE, look)  # g s h w
    overlap = torch.minimum(cover, mask).sum((2, 3)) / torch.maximum(cover, mask).sum((2, 3))
    index = int(overlap.flatten().argmax())
    place, shape = divmod(index, overlap.shape[1])
    found_x, found_y, found_radius = map(float, grid[place])
    return SHAPES[shape], found_x, found_y, found_radius, float(overlap.flatten()[index])


def _radius(area: float, look: Look) -> float:
    """The radius of a thing that covers `area`, both in shares of the image."""
    radii, areas = _areas(look)
    after = int(torch.searchsorted(areas, torch.tensor(area)).clamp(1, len(areas) - 1))
    share = (area - areas[after - 1]) / (areas[after] - areas[after - 1])
    return float(radii[after - 1] + share.clamp(0, 1) * (radii[after] - radii[after - 1]))


@cache
def _areas(look: Look) -> tuple[Tensor, Tensor]:
    """Radii and the areas of things of that size, the mean of all shapes."""
    radii = torch.linspace(0.02, 0.4, 39)
    middle = torch.full_like(radii, 0.5)
    return radii, coverage(middle, middle, radii, 96, look).mean((1, 2, 3))


def motion_of(seen: list[Seen], motion: str) -> bool:
    """Whether a clip's things moved as the caption names it; an unnamed motion is anything."""
    if motion in DIRECTIONS:
        toward = DIRECTIONS[motion]
        along = [s.x * toward[0] + s.y * toward[1] for s in seen]
        across = [s.x * toward[1] + s.y * toward[0] for s in seen]
        way = along[-1] - along[0]
        return way > 1 / 8 and _forward(along) >= 0.7 and abs(across[-1] - across[0]) < way
    sizes = [s.radius for s in seen]
    if motion == "growing":
        return sizes[-1] > 1.25 * sizes[0] and _forward(sizes) >= 0.7
    if motion == "shrinking":
        return sizes[-1] < 0.8 * sizes[0] and _forward([-s for s in sizes]) >= 0.7
    if motion == "bouncing":
        heights = [s.y for s in seen]
        turns = _turns(heights)
        sideways = max(s.x for s in seen) - min(s.x for s in seen)
        return turns >= 1 and max(heights) - min(heights) > max(1 / 8, sideways)
    return True


def in_view(seen: list[Seen]) -> bool:
    """Whether the thing is there, within the image, in every frame."""
    edge = 0.5 * EXTENT
    return all(s.radius > 0 and edge * s.radius < min(s.x, s.y, 1 - s.x, 1 - s.y) for s in seen)


def _forward(values: list[float]) -> float:
    steps = [b - a for a, b in zip(values, values[1:], strict=False)]
    return sum(step > 0 for step in steps) / len(steps)


def _turns(values: list[float], least: float = 0.05) -> int:
    """How often a path turns back by more than `least`."""
    turns, extreme, direction = 0, values[0], 0
    for value in values[1:]:
        if direction == 0:
            if abs(value - extreme) > least:
                direction, extreme = (1 if value > extreme else -1), value
        elif (value - extreme) * direction > 0:
            extreme = value
        elif abs(value - extreme) > least:
            turns, direction, extreme = turns + 1, -direction, value
    return turns


@dataclass(frozen=True)
class Verdict:
    """The attributes of a caption that its clip shows."""

    background: bool
    color: bool
    shape: bool
    place: bool
    motion: bool
    look: bool
    """Told from every fourth frame."""
    path: float
    """Length of the centre's path, shares of the width."""
    largest_step: float
    change: float
    """Mean absolute change of a pixel from frame to frame, 0..1."""


def judge(scene: Scene, clip: Tensor, look: Look = PLAIN) -> Verdict:
    """clip: f 3 h w in [0, 1]; one frame is judged as an image. Attributes need most frames."""
    seen = [observe(image, look) for image in clip]

    def most(right: list[bool]) -> bool:
        return sum(right) * 2 > len(right)

    wanted = PLACES[scene.place]
    places = [
        all(w is None or abs(w - at) < 0.13 for w, at in zip(wanted, (s.x, s.y), strict=True))
        for s in seen
    ]
    steps = [
        ((b.x - a.x) ** 2 + (b.y - a.y) ** 2) ** 0.5 for a, b in zip(seen, seen[1:], strict=False)
    ]
    return Verdict(
        background=most([s.background == scene.background for s in seen]),
        color=most([s.color == scene.color for s in seen]),
        shape=most([s.shape == scene.shape for s in seen]),
        place=most(places),
        motion=len(seen) == 1 or (motion_of(seen, scene.motion) and in_view(seen)),
        look=most([look_of(image) == look.name for image in clip[::4]]),
        path=sum(steps),
        largest_step=max(steps, default=0.0),
        change=float((clip[1:] - clip[:-1]).abs().mean()) if len(seen) > 1 else 0.0,
    )
