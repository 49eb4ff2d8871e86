"""The image UNet's transformers on one or a few frames at a time, so that they stay in the cache.

Everything in them is per frame: norm, projections, attention over pixels and to the text, feed
forward. Features are channels-last, so that pixels are rows of a matrix without a copy.

Legend: b batch, f frames, c channels, h w latent size, n tokens, d features, p attention heads.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.models.transformers.transformer_2d import Transformer2DModelOutput
from torch import Tensor, nn
from torch.nn import functional as F

from .norms import group_norm
from .packing import gated, linear, linear_add
from .text_memory import TextMemory

_ROWS, _NARROW = 1024, 160


def rows_for(channels: int, dtype: torch.dtype) -> int:
    """Rows of a matrix that go through a chain of layers together: with them, what lies between
    two layers is a few megabytes. Where layers are narrow, calls cost more than the cache saves."""
    return 2 * _ROWS if channels <= _NARROW or dtype.itemsize < 4 else _ROWS


@dataclass
class FastTransformer:
    """The forward of one Transformer2DModel."""

    transformer: Any
    text: TextMemory

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        timestep: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        class_labels: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        attention_mask: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """hidden_states: (b f) c h w; encoder_hidden_states: (b f) n d. As diffusers' own."""
        kept = self.transformer
        special = (attention_mask, encoder_attention_mask, class_labels)
        plain = torch.is_grad_enabled() or cross_attention_kwargs or not _fits_whole(kept)
        if plain or any(one is not None for one in special) or encoder_hidden_states is None:
            return type(kept).forward(
                kept, hidden_states, encoder_hidden_states, timestep, added_cond_kwargs,
                class_labels, cross_attention_kwargs, attention_mask, encoder_attention_mask,
                return_dict,
            )  # fmt: skip
        given = hidden_states.contiguous(memory_format=torch.channels_last)
        out = torch.empty_like(given)
        pixels, most = given.shape[2] * given.shape[3], rows_for(given.shape[1], given.dtype)
        for rows in self.text.chunks(given.shape[0], max(1, most // pixels)):
            self._some(given[rows], encoder_hidden_states, rows, out[rows])
        return Transformer2DModelOutput(sample=out) if return_dict else (out,)

    def _some(self, given: Tensor, states: Tensor, rows: slice, out: Tensor) -> None:
        """Some frames, k c h w, into `out`."""
        kept = self.transformer
        x = group_norm(kept.norm, given).permute(0, 2, 3, 1).flatten(1, 2)  # k hw c
        x = linear(kept.proj_in, x)
        for block in kept.transformer_blocks:
            x = self._block(block, x, states, rows)
        x = linear(kept.proj_out, x).unflatten(1, given.shape[2:])  # k h w c
        torch.add(given, x.permute(0, 3, 1, 2), out=out)

    def _block(self, block: Any, x: Tensor, states: Tensor, rows: slice) -> Tensor:
        """x: k hw c."""
        one, two = block.attn1, block.attn2
        normed = block.norm1(x)
        x = _attend(one, normed, one.to_k(normed), one.to_v(normed), x)
        keys, values = self.text.keys_values_of(two, states, rows)
        x = _attend(two, block.norm2(x), keys, values, x)
        return feed_forward(block.ff.net, block.norm3(x), x)


def _attend(attention: Any, normed: Tensor, keys: Tensor, values: Tensor, x: Tensor) -> Tensor:
    """x and what attention adds to it. normed, x: k hw c; keys, values: k n c."""
    query, key, value = (
        t.unflatten(2, (attention.heads, -1)).transpose(1, 2)  # k p n c/p
        for t in (attention.to_q(normed), keys, values)
    )
    mixed = F.scaled_dot_product_attention(query, key, value)
    return linear_add(attention.to_out[0], mixed.transpose(1, 2).flatten(2), x)


def feed_forward(net: Any, normed: Tensor, x: Tensor) -> Tensor:
    """x and what a GEGLU feed forward adds to it, some rows at a time: … c."""
    rows, given = normed.flatten(0, -2), x.flatten(0, -2)
    most = rows_for(x.shape[-1], x.dtype)
    parts = [
        linear_add(net[2], gated(net[0].proj, some), other)
        for some, other in zip(rows.split(most), given.split(most), strict=True)
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(x.shape)


def _fits_whole(transformer: Any) -> bool:
    blocks = transformer.transformer_blocks
    attentions = (one for block in blocks for one in (block.attn1, block.attn2))
    return fits(transformer) and all(map(attention_fits, attentions))


def fits(transformer: Any) -> bool:
    """Whether it is made as Stable Diffusion's are, but for its attentions."""
    return (
        transformer.is_input_continuous
        and transformer.proj_out.weight.shape[0] == transformer.in_channels
        and all(_block_fits(block) for block in transformer.transformer_blocks)
    )


def _block_fits(block: Any) -> bool:
    return (
        block.norm_type == "layer_norm"
        and block.pos_embed is None
        and not block.only_cross_attention
        and block.attn2 is not None
        and isinstance(block.ff.net[0], GEGLU)
        and len(block.ff.net) == 3
        and not block.training
        and not block._forward_hooks
    )


def attention_fits(attention: Any) -> bool:
    """Whether nobody has put other parts into it."""
    return (
        type(attention.processor) is AttnProcessor2_0
        and not attention._forward_hooks
        and attention.group_norm is None
        and attention.spatial_norm is None
        and attention.norm_q is None
        and attention.norm_k is None
        and not attention.norm_cross
        and not attention.residual_connection
        and attention.rescale_output_factor == 1
        and isinstance(attention.to_out[0], nn.Module)
    )
