"""The network of world 2's judge. Legend: b clips, f frames, d features."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .scenes import ATTRIBUTES, COUNTS

FEATURES = 256
MOVING = ("motion", "camera")
"""Attributes that need more than one frame."""


class Judge(nn.Module):
    """1.6 M parameters."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width, 6 * width)
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
            layers += [
                nn.Conv2d(before, after, 4 if i < 3 else 3, 2 if i < 3 else 1, 1),
                nn.GroupNorm(8, after),
                nn.SiLU(),
            ]
            if i > 1:
                layers += [nn.Conv2d(after, after, 3, 1, 1), nn.GroupNorm(8, after), nn.SiLU()]
        layers += [nn.Conv2d(widths[-1], 2 * width, 1), nn.Flatten(), nn.LazyLinear(FEATURES)]
        self.frames = nn.Sequential(*layers)
        self.time = nn.Sequential(
            nn.Conv1d(FEATURES, FEATURES, 3, padding=1),
            nn.SiLU(),
            nn.Conv1d(FEATURES, FEATURES, 3, padding=1),
            nn.SiLU(),
        )
        self.still = nn.Sequential(nn.SiLU(), nn.Linear(FEATURES, sum(COUNTS)))
        self.moving = nn.Linear(FEATURES, sum(COUNTS))

    def forward(self, clips: Tensor) -> tuple[Tensor, ...]:
        """Scores of every attribute's values, b k each; clips: b f 3 h w in [0, 1]."""
        images = F.avg_pool2d(clips.flatten(0, 1), 2) * 2 - 1
        features = self.frames(images).unflatten(0, clips.shape[:2])  # b f d
        still = self.still(features.mean(1)).float().split(COUNTS, 1)
        course = self.time(features.transpose(1, 2)).mean(2)
        moving = self.moving(course).float().split(COUNTS, 1)
        named = zip(ATTRIBUTES, still, moving, strict=True)
        return tuple(move if name in MOVING else stay for name, stay, move in named)


def new_judge(pixels: int, width: int = 32) -> Judge:
    """A judge of clips of this size."""
    judge = Judge(width)
    with torch.no_grad():
        judge(torch.zeros(1, 2, 3, pixels, pixels))
    return judge
