"""Group norms of channels-last features.

Legend: b batch, f frames, c channels, h w latent size.
"""

import torch
from torch import Tensor, nn

_FEW_PIXELS = 1024
"""From as many on torch 2.13 has a fast kernel for channels-last features."""


def group_norm(norm: nn.GroupNorm, features: Tensor) -> Tensor:
    """(b f) c h w, channels last -> the same numbers, in whichever layout was fastest to make.

    Over few pixels and few channels a group, torch's channels-last kernel is several times as slow
    as its plain one and a copy: 5 times in bf16, 1.5 in fp32.
    """
    pixels = features.shape[2] * features.shape[3]
    most = 16 if features.dtype == torch.bfloat16 else 4
    narrow = features.shape[1] // norm.num_groups <= most
    given = features.contiguous() if pixels < _FEW_PIXELS and narrow else features
    normed: Tensor = norm(given)
    return normed
