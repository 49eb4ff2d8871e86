"""FreeNoise: the first noise of a long clip is one window's, again and again, shuffled.

What is far apart in the clip starts from the same noise, so it stays the same thing; the order is
new, so it does not repeat (arXiv 2310.15169, section 3.3).

Legend: b batch, f frames, c channels, h w latent size.
"""

import torch
from torch import Tensor

from ..jobs import Window
from .noise import Shape, seeded


def free_noise(seed: int, shape: Shape, window: Window) -> Tensor:
    """Unit-variance noise b c f h w, drawn on the CPU; within the first window independent.

    What lies one window after a stretch of `length - overlap` frames has that stretch's noise in
    another order. So every window that begins where such a stretch does has all of the noise once.
    """
    batch, channels, frames, *size = shape
    generator = seeded(seed)
    drawn = torch.randn((batch, channels, min(window.length, frames), *size), generator=generator)
    hop = window.length - window.overlap
    order = list(range(window.length))
    for start in range(0, frames - window.length, hop):
        stretch = order[start : start + hop]
        order += [stretch[i] for i in torch.randperm(hop, generator=generator).tolist()]
    return drawn[:, :, order[:frames]]
