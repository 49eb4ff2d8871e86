"""The PIA mask: how similar each frame is to the animated image (arXiv 2312.13964, section 3.2)."""

from typing import Literal

import torch
from torch import Tensor

Amount = Literal["small", "medium", "large", "loop"]
_CURVES: dict[str, tuple[float, ...]] = {
    "small": (1.0, 0.9, 0.85, 0.85, 0.85, 0.8),
    "medium": (1.0, 0.8, 0.8, 0.8, 0.79, 0.78, 0.75),
    "large": (1.0, 0.8, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.6, 0.5, 0.5),
}
"""By frame, as the released module was trained to read them; the last one goes on."""


def pia_mask(amount: Amount, frames: int) -> Tensor:
    """Coefficients by frame, f: 1 in the first frame, less later. A loop uses the curve of small
    from both ends."""
    curve = _CURVES["small" if amount == "loop" else amount]
    distances = [min(i, frames - 1 - i) if amount == "loop" else i for i in range(frames)]
    return torch.tensor([curve[min(i, len(curve) - 1)] for i in distances])
