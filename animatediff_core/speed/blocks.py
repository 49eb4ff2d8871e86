"""Forwards of ResNets and transformers without copies: pixels are the rows of a matrix.

Features are channels-last. On the CPU a chain of layers runs for some frames or some pixels at a
time, so that they stay in the cache; on CUDA for all at once, by the kernels of kernels.py. A call
that does not fit, with gradients for example, takes the module's own forward.

Legend: b batch, f frames, c channels, h w latent size, n tokens, d features, e features of time,
s pixels, p attention heads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.models.transformers.transformer_2d import Transformer2DModelOutput
from torch import Tensor, nn
from torch.nn import functional as F

from ..motion.hooks import frames_pooled
from ..motion.module import AS_TRAINED, Positions, TemporalTransformer
from .layers import (
    Setting,
    attend,
    feed_forward,
    images,
    linear,
    pooled_norm,
    query_key_value,
    rows,
    runs,
)


@dataclass
class FastResnet:
    """The forward of one ResnetBlock2D."""

    resnet: Any
    setting: Setting

    def forward(self, input_tensor: Tensor, temb: Tensor | None = None) -> Tensor:
        """input_tensor: (b f) c h w; temb: (b f) e, or None in a VAE."""
        own, ops = self.resnet, self.setting.ops
        if not runs(own, input_tensor):
            plain: Tensor = type(own).forward(own, input_tensor, temb)
            return plain
        x = input_tensor.contiguous(memory_format=torch.channels_last)
        y, bias = ops.convolve(own.conv1, self._norm(own.norm1, x))
        bias = None if bias is None else bias.unsqueeze(0)
        if temb is not None and own.time_emb_proj is not None:
            time = own.time_emb_proj(F.silu(temb))
            bias = time if bias is None else time + bias
        y, bias = ops.convolve(own.conv2, self._norm(own.norm2, y, bias))
        beside = rows(x)
        if own.conv_shortcut is not None:
            beside = linear(own.conv_shortcut, beside)
        return images(ops.add(rows(y), bias, beside), y)

    def _norm(self, norm: nn.GroupNorm, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return pooled_norm(self.setting, norm, x, frames_pooled(norm) or 1, silu=True, bias=bias)


@dataclass
class FastTransformer:
    """The forward of one Transformer2DModel."""

    transformer: Any
    setting: Setting

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        *,
        return_dict: bool = True,
        **special: Any,
    ) -> Any:
        """hidden_states: (b f) c h w; encoder_hidden_states: (b f) n d, or with what an IP-Adapter
        reads. Special are masks and the like, which the module's own forward takes."""
        own = self.transformer
        plain = any(one is not None for one in special.values()) or encoder_hidden_states is None
        if plain or not runs(own, hidden_states) or not _transformer_fits(own):
            return type(own).forward(
                own, hidden_states, encoder_hidden_states, return_dict=return_dict, **special
            )
        given = hidden_states.contiguous(memory_format=torch.channels_last)
        chunks = [slice(0, given.shape[0])]
        if self.setting.chunked and isinstance(encoder_hidden_states, Tensor):
            chunks = self._chunks(given, encoder_hidden_states)
        parts = [self._some(given[some], encoder_hidden_states, some) for some in chunks]
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        return Transformer2DModelOutput(sample=out) if return_dict else (out,)

    def _chunks(self, given: Tensor, states: Tensor) -> list[slice]:
        """Some frames at a time, none of two clips that have texts of their own."""
        most = self.setting.rows(given.shape[1], given.dtype) // (given.shape[2] * given.shape[3])
        text = self._shared(states)
        length = len(given) if text is None else len(given) // len(text)
        return [
            slice(first, min(first + max(1, most), clip + length))
            for clip in range(0, len(given), length)
            for first in range(clip, clip + length, max(1, most))
        ]

    def _shared(self, states: Tensor) -> Tensor | None:
        """The text, b n d, that the states (b f) n d repeat for each frame."""
        call = self.setting.call
        text = None if call is None else call.text
        if text is None or call.frames is None or states.shape[1:] != text.shape[1:]:  # type: ignore[union-attr]
            return None
        return text if len(states) == len(text) * call.frames else None  # type: ignore[union-attr]

    def _some(self, given: Tensor, states: Any, frames: slice) -> Tensor:
        """Some frames, k c h w."""
        own, ops = self.transformer, self.setting.ops
        x = linear(own.proj_in, rows(ops.group_norm(given, own.norm)))
        for block in own.transformer_blocks:
            x = self._block(block, x, states, frames)
        return images(ops.linear_add(own.proj_out, x, rows(given)), given)

    def _text(self, states: Tensor, frames: slice) -> Tensor:
        """The text of some frames: once for the frames of a clip that share it, else by frame."""
        text = self._shared(states)
        if text is None:
            return states[frames]
        length = len(states) // len(text)
        return text[frames.start // length : -(-frames.stop // length)]

    def _block(self, block: Any, x: Tensor, states: Any, frames: slice) -> Tensor:
        """x: (k hw) c."""
        ops, attention, cross = self.setting.ops, block.attn1, block.attn2
        count = frames.stop - frames.start
        qkv = query_key_value(attention, ops.layer_norm(x, block.norm1)).view(
            count, -1, 3, x.shape[1]
        )
        query, key, value = qkv.unbind(2)
        mixed = attend(query, key, value, attention.heads)
        x = ops.linear_add(attention.to_out[0], mixed, x)
        normed = ops.layer_norm(x, block.norm2)
        if _attention_fits(cross):
            text = self._text(states, frames)  # one for all frames that share it
            query = cross.to_q(normed).view(len(text), -1, x.shape[1])
            mixed = attend(query, cross.to_k(text), cross.to_v(text), cross.heads)
            x = ops.linear_add(cross.to_out[0], mixed, x)
        else:  # an IP-Adapter's
            x = cross(normed.view(count, -1, x.shape[1]), states).flatten(0, 1).add_(x)
        return feed_forward(self.setting, block.ff.net, ops.layer_norm(x, block.norm3), x)


@dataclass
class FastTemporal:
    """The forward of one TemporalTransformer."""

    transformer: TemporalTransformer
    setting: Setting
    places: dict[Any, list[Tensor]]
    """Positions by frames, channels, dtype and how they are read; those of all transformers."""

    def forward(
        self,
        features: Tensor,
        frames: int,
        strength: float = 1.0,
        positions: Positions = AS_TRAINED,
    ) -> Tensor:
        """features: (b f) c h w -> the same shape."""
        own, channels = self.transformer, features.shape[1]
        if not runs(own, features) or frames > getattr(self.setting.ops, "MAX_FRAMES", frames):
            plain: Tensor = type(own).forward(own, features, frames, strength, positions)
            return plain
        given = features.contiguous(memory_format=torch.channels_last)
        pooled = frames if own.frame_norm == "clip" else 1
        normed = pooled_norm(self.setting, own.norm, given, pooled)
        key = frames, channels, given.dtype, positions, own if own.has_own_positions else None
        if key not in self.places:
            self.places[key] = own.places(frames, rows(given), positions)
        step = max(1, self.setting.rows(channels, given.dtype) // frames)
        pixels = given.shape[2] * given.shape[3]
        if step >= pixels:
            out = self._some(rows(normed), rows(given), pixels, self.places[key], strength)
            return images(out, given)
        out = torch.empty_like(given)
        new, old, clips = (rows(t).view(-1, frames, pixels, channels) for t in (out, given, normed))
        for clip in range(len(clips)):
            for part in (slice(first, first + step) for first in range(0, pixels, step)):
                some, beside = (t[clip, :, part].flatten(0, 1) for t in (clips, old))
                moved = self._some(some, beside, len(some) // frames, self.places[key], strength)
                new[clip, :, part] = moved.view(frames, -1, channels)
        return out

    def _some(
        self, normed: Tensor, given: Tensor, pixels: int, places: list[Tensor], strength: float
    ) -> Tensor:
        """Some pixels of each frame: (b f s) c -> (b f s) c."""
        own, ops = self.transformer, self.setting.ops
        x = linear(own.proj_in, normed)
        for block in own.transformer_blocks:
            layers = zip(block.attention_blocks, block.norms, places, strict=True)  # type: ignore[arg-type]
            for attention, norm, place in layers:
                qkv = query_key_value(attention, ops.layer_norm(x, norm, place, pixels))
                mixed = ops.attend_frames(qkv, len(place), pixels, attention.heads)
                x = ops.linear_add(attention.to_out[0], mixed, x)
            x = feed_forward(self.setting, block.ff.net, ops.layer_norm(x, block.ff_norm), x)  # type: ignore[union-attr]
        moved: Tensor = ops.linear_add(own.proj_out, x, given, strength)
        return moved


def norm_forward(norm: nn.GroupNorm, setting: Setting) -> Callable[[Tensor], Tensor]:
    """The forward of a GroupNorm that stands alone; its hooks join and split the frames."""

    def forward(x: Tensor) -> Tensor:
        last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
        if not last or torch.is_grad_enabled() or x.dtype != norm.weight.dtype:
            return type(norm).forward(norm, x)
        normed: Tensor = setting.ops.group_norm(x, norm)
        return normed

    return forward


def resnet_fits(resnet: Any) -> bool:
    """Whether a ResNet has the structure of Stable Diffusion's."""
    return (
        resnet.upsample is None
        and resnet.downsample is None
        and resnet.time_embedding_norm == "default"
        and resnet.output_scale_factor == 1
        and not resnet.skip_time_act
        and isinstance(resnet.nonlinearity, nn.SiLU)
    )


def _transformer_fits(transformer: Any) -> bool:
    """Whether a transformer has Stable Diffusion's structure; its cross-attention may differ."""
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
        and _attention_fits(block.attn1)
    )


def _attention_fits(attention: Any) -> bool:
    """Whether an attention is diffusers' plain one."""
    return (
        type(attention.processor) is AttnProcessor2_0
        and attention.group_norm is None
        and attention.spatial_norm is None
        and attention.norm_q is None
        and attention.norm_k is None
        and not attention.norm_cross
        and not attention.residual_connection
        and attention.rescale_output_factor == 1
    )
