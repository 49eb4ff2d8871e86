"""What SDXL reads besides the text: pooled text, and the sizes that its pictures had.

Legend: b batch, f frames, d features.
"""

import torch
from torch import Tensor

from ..motion import Conditions


def size_conditions(pooled: Tensor | None, height: int, width: int) -> Conditions | None:
    """Conditions of uncropped pictures of this size in pixels; None where no text is pooled.

    pooled: b d or b f d, as the second text encoder gives it (arXiv 2307.01952, section 2.2).
    """
    if pooled is None:
        return None
    sizes = [height, width, 0, 0, height, width]
    return Conditions(pooled_text=pooled, size_ids=torch.tensor([sizes] * len(pooled)).to(pooled))
