"""SDXL's conditioning inputs besides the text: pooled text and image sizes.

Legend: b batch, f frames, d features.
"""

import torch
from torch import Tensor

from ..motion import Conditions


def size_conditions(pooled: Tensor | None, height: int, width: int) -> Conditions:
    """Conditions of uncropped images of this size in pixels; empty if there is no pooled text.

    pooled: b d or b f d, as the second text encoder gives it (arXiv 2307.01952, section 2.2).
    """
    if pooled is None:
        return Conditions()
    sizes = [height, width, 0, 0, height, width]
    return Conditions(pooled_text=pooled, size_ids=torch.tensor([sizes] * len(pooled)).to(pooled))
