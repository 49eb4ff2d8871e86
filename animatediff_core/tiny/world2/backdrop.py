"""Landscapes behind the things and weather before them.

Legend: n images, h w pixels.
"""

import torch
from torch import Tensor, nn

from .painting import cover, mix, over, pixels, scatter
from .scenes import Scenes

_COLORS = (
    ((70, 150, 225), (200, 228, 245), (135, 190, 90), (75, 140, 50), (255, 245, 200)),
    ((110, 180, 235), (225, 238, 245), (60, 150, 185), (15, 75, 130), (255, 245, 200)),
    ((8, 10, 35), (35, 40, 85), (30, 40, 50), (15, 20, 28), (235, 235, 215)),
    ((95, 60, 120), (250, 160, 105), (125, 75, 80), (70, 40, 60), (255, 215, 120)),
    ((130, 195, 230), (245, 230, 205), (235, 195, 130), (200, 145, 85), (255, 250, 225)),
    ((165, 165, 170), (190, 190, 195), (175, 172, 170), (120, 118, 118), (190, 190, 195)),
)
"""Sky above, sky at the horizon, ground at the horizon, ground below, sun or moon."""
_GROUNDS = (
    (0.30, 0.08, 0.04, 0.85, 0.0, 0.13),
    (0.20, 0.00, 0.13, 0.60, 0.0, 0.13),
    (0.45, 0.06, 0.00, 0.00, 1.0, 0.13),
    (0.35, 0.12, 0.03, 0.35, 0.0, 0.15),
    (0.30, 0.16, 0.05, 0.00, 0.0, 0.10),
    (0.40, 0.00, 0.00, 0.00, 0.0, 0.0),
)
"""Height of the horizon, of hills, of waves; clouds, stars, radius of the sun."""


class Backdrop(nn.Module):
    """The tables of the landscapes, and how they are drawn."""

    colors: Tensor
    grounds: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("colors", torch.tensor(_COLORS) / 255)
        self.register_buffer("grounds", torch.tensor(_GROUNDS))

    def forward(self, scenes: Scenes, time: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Sky, sun or moon, stars, clouds and ground: n 3 h w. time: n; x y: n h w."""
        colors = self.colors[scenes.background]  # n 5 3
        grounds = self.grounds[scenes.background]  # n 6
        horizon, hills, waves, clouds, stars, sun = (pixels(v) for v in grounds.unbind(1))
        chance = [pixels(v) for v in scenes.chances[:, 9:16].unbind(1)]
        time, size = pixels(time), x.shape[-1]
        high = horizon + 0.12 * (chance[0] - 0.5)
        high = high + hills * (3 * x + 6.3 * chance[1]).sin() * (1 + 0.5 * (7 * x).cos())
        depth = y - high  # below the horizon it is positive
        sky = mix(colors[:, 0], colors[:, 1], ((depth + 1.3) / 1.3).clamp(0, 1))
        sun_x, sun_y = 1.4 * (chance[2] - 0.5), high - 0.45 - 0.35 * chance[3]
        far = torch.hypot(x - sun_x, y - sun_y)
        glow = 0.45 * (-(far - sun).clamp(min=0) * 6).exp() * (sun > 0)
        disc = cover(far - sun, size) * (sun > 0)
        sky = over(sky, colors[:, 4], torch.maximum(glow, disc))
        sky = over(sky, torch.ones_like(colors[:, 0]), stars * _stars(x, y, size) * 0.9)
        drift = 0.25 * time + 2 * chance[4]
        wave = (2.1 * x + 6 * (drift + chance[5])).sin() + (4.3 * x - 3 * drift + 9 * y).sin() * 0.6
        band = (-((depth + 0.75 + 0.2 * chance[6]) * 3.5).square()).exp()
        sky = over(sky, torch.ones_like(colors[:, 0]), clouds * band * (wave * 0.8).clamp(0, 1))
        near = 1 / (depth.clamp(min=0) + 0.12)
        ripples = waves * (11 * near + 5 * x * (depth + 0.3) - 9 * time + 6 * chance[1]).sin()
        ground = mix(colors[:, 2], colors[:, 3], (depth / 0.8).clamp(0, 1))
        ground = ground * (1 + ripples).unsqueeze(1)
        return torch.lerp(sky, ground, cover(-depth, size).unsqueeze(1))


def weather(image: Tensor, scenes: Scenes, time: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Rain and snow before everything, in the camera's own coordinates."""
    size = image.shape[-1]
    t, shift = pixels(time), pixels(scenes.chances[:, 16])
    column = 7 * x + 1.6 * y + 40
    lot = scatter(column.floor(), 0 * x)
    fall = (0.9 * y - 2.5 * t + 5 * lot + shift) % 1
    streak = cover(((column % 1) - 0.5).abs() / 7 - 0.012, size) * (fall > 0.6) * (fall - 0.6) * 2.5
    rain = 0.65 * streak * pixels((scenes.weather == 1).float())
    cells_x = 3.2 * x + 20 + 0.15 * (6 * t + 3 * y).sin()
    cells_y = 3.2 * y - 4 * t + 6 * shift + 20
    column, row = cells_x.floor(), cells_y.floor()
    lot, other = scatter(column, row), scatter(row, column + 7)
    flake = torch.hypot(cells_x - column - 0.25 - 0.5 * lot, cells_y - row - 0.25 - 0.5 * other)
    snow = 0.95 * cover(flake / 3.2 - 0.022 - 0.014 * lot, size)
    snow = snow * pixels((scenes.weather == 2).float())
    return over(image, image.new_full((1, 3), 0.93), torch.maximum(rain, snow))


def _stars(x: Tensor, y: Tensor, size: int) -> Tensor:
    """One star in each cell of a grid."""
    cells_x, cells_y = 4 * x + 20, 4 * y + 20
    column, row = cells_x.floor(), cells_y.floor()
    lot, other = scatter(column, row), scatter(row, column + 3)
    far = torch.hypot(cells_x - column - 0.2 - 0.6 * lot, cells_y - row - 0.2 - 0.6 * other) / 4
    return cover(far - 0.008 - 0.016 * other, size)
