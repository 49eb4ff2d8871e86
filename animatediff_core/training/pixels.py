"""Frames of files as the tensors of training.

Legend: f frames, h w pixels.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def to_pixels(frames: np.ndarray, size: tuple[int, int]) -> Tensor:
    """f h w 3 uint8, scaled to cover `size` and cropped to its middle: f 3 h w in [-1, 1]."""
    pixels = torch.tensor(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
    height, width = pixels.shape[2:]
    scale = max(size[0] / height, size[1] / width)
    if (height, width) != size:
        covering = (max(round(height * scale), size[0]), max(round(width * scale), size[1]))
        pixels = F.interpolate(pixels, covering, mode="bilinear", antialias=True)
    top, left = (pixels.shape[2] - size[0]) // 2, (pixels.shape[3] - size[1]) // 2
    return pixels[:, :, top : top + size[0], left : left + size[1]]
