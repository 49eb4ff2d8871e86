"""Clips made from images by a camera that moves over them, as references of MotionLoRAs.

Legend: f frames, h w pixels.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..jobs.camera import Move
from .pixels import to_pixels

_ZOOM = 0.6
"""Share of the image's sides that the camera sees where it is nearest."""
_PAN = 0.75
"""Share that it sees while it slides."""
_ROLL, _ANGLE = 0.7, math.radians(30)
"""Share that it sees while it rolls, and the angle of the whole roll."""


def camera_clip(image: np.ndarray, move: Move, frames: int, size: tuple[int, int]) -> Tensor:
    """An image, h w 3 uint8, as a clip f 3 h w in [-1, 1] of this height and width.

    Directions are the camera's: zoom-in comes nearer, pan-left shows more of what is left, and the
    picture turns clockwise in roll-clockwise.
    """
    height, width = size
    pixels = to_pixels(image[None], (2 * height, 2 * width))
    way = torch.linspace(0, 1, frames)
    share, across, down, angle = _path(move, way)
    cosine, sine = share * angle.cos(), share * angle.sin()
    across, down = across * (1 - share), down * (1 - share)
    rows = (cosine, -sine * height / width, across, sine * width / height, cosine, down)
    theta = torch.stack(rows, dim=1).view(frames, 2, 3)
    grid = F.affine_grid(theta, [frames, 3, height, width], align_corners=False)
    source = pixels.expand(frames, -1, -1, -1)
    clip: Tensor = F.grid_sample(source, grid, padding_mode="border", align_corners=False)
    return clip


def _path(move: Move, way: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Share of the sides, place across and down (-1 to 1), and angle, by frame."""
    still = torch.zeros_like(way)
    full, between = torch.ones_like(way), 2 * way - 1
    match move:
        case "zoom-in":
            return full + (_ZOOM - 1) * way, still, still, still
        case "zoom-out":
            return _ZOOM + (1 - _ZOOM) * way, still, still, still
        case "pan-left" | "pan-right":
            return full * _PAN, between if move == "pan-right" else -between, still, still
        case "tilt-up" | "tilt-down":
            return full * _PAN, still, between if move == "tilt-down" else -between, still
        case "roll-clockwise" | "roll-anticlockwise":
            turn = way if move == "roll-anticlockwise" else -way
            return full * _ROLL, still, still, turn * _ANGLE
