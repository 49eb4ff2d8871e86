"""ResNets with activations in place and the residual added by the convolution itself.

Legend: b batch, f frames, c channels, h w latent size, e features of the time.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .norms import group_norm
from .packing import convolve_add


@dataclass
class FastResnet:
    """The forward of one ResnetBlock2D."""

    resnet: Any

    def forward(self, input_tensor: Tensor, temb: Tensor | None = None) -> Tensor:
        """input_tensor: (b f) c h w; temb: (b f) e, or None in a VAE."""
        kept = self.resnet
        if torch.is_grad_enabled():
            plain: Tensor = type(kept).forward(kept, input_tensor, temb)
            return plain
        given = input_tensor.contiguous(memory_format=torch.channels_last)
        x = kept.conv1(_activate(group_norm(kept.norm1, given), given))
        if temb is not None and kept.time_emb_proj is not None:
            x = x.add_(kept.time_emb_proj(F.silu(temb))[:, :, None, None])
        x = _activate(group_norm(kept.norm2, x), x)
        if kept.conv_shortcut is not None:
            given = kept.conv_shortcut(given)
        return convolve_add(kept.conv2, x, given)


def _activate(normed: Tensor, given: Tensor) -> Tensor:
    """SiLU, in place where the norm has made a tensor of its own."""
    active = F.silu(normed, inplace=normed.data_ptr() != given.data_ptr())
    return active.contiguous(memory_format=torch.channels_last)


def fits(resnet: Any) -> bool:
    """Whether it is made as Stable Diffusion's are."""
    return (
        resnet.upsample is None
        and resnet.downsample is None
        and resnet.time_embedding_norm == "default"
        and resnet.output_scale_factor == 1
        and not resnet.skip_time_act
        and isinstance(resnet.nonlinearity, torch.nn.SiLU)
    )
