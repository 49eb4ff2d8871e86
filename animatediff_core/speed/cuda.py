"""The forwards of ResNets and transformers on CUDA: channels-last, no copies, few passes.

Features stay channels-last, so that pixels are the rows of a matrix, (b f hw) c, without a copy,
and a clip norm is a norm over more rows. Each forward falls back to the module's own where it does
not fit. The kernels are those of kernels.py.

Legend: b batch, f frames, c channels, h w latent size, n tokens, d features, e features of time,
p attention heads.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModelOutput
from torch import Tensor, nn
from torch.nn import functional as F

from ..motion.hooks import frames_pooled
from ..motion.module import AS_TRAINED, Positions, TemporalTransformer, sinusoids
from .spatial import attention_fits, fits
from .text_memory import TextMemory


def suits(weight: Tensor) -> bool:
    """Whether the kernels run where a weight is."""
    return weight.device.type == "cuda" and _can_run()


@cache
def _can_run() -> bool:
    from torch.utils._triton import has_triton

    real = torch.cuda.is_available() and torch.version.hip is None
    return real and torch.cuda.get_device_capability() >= (8, 0) and has_triton()


@dataclass
class CudaResnet:
    """The forward of one ResnetBlock2D."""

    resnet: Any
    sums: dict[str, tuple[tuple[int, ...], Tensor]] = field(default_factory=dict)

    def forward(self, input_tensor: Tensor, temb: Tensor | None = None) -> Tensor:
        """input_tensor: (b f) c h w; temb: (b f) e, or None in a VAE."""
        from . import kernels

        own = self.resnet
        if not _runs(own, input_tensor):
            plain: Tensor = type(own).forward(own, input_tensor, temb)
            return plain
        x = input_tensor.contiguous(memory_format=torch.channels_last)
        y = _group_norm(own.norm1, x, silu=True)
        y = _convolve(own.conv1, y)
        bias = own.conv1.bias.unsqueeze(0)
        if temb is not None and own.time_emb_proj is not None:
            project = own.time_emb_proj
            both = self._sum("first", project.bias, own.conv1.bias)
            bias = F.linear(F.silu(temb), project.weight, both)
        y = _convolve(own.conv2, _group_norm(own.norm2, y, silu=True, bias=bias))
        if own.conv_shortcut is None:
            out = kernels.add(_rows(y), own.conv2.bias, _rows(x))
        else:
            shortcut = own.conv_shortcut
            both = self._sum("last", shortcut.bias, own.conv2.bias)
            out = kernels.product(_rows(x), shortcut.weight.flatten(1), both, other=_rows(y))
        return _pixels(out, y)

    def _sum(self, name: str, *biases: Tensor) -> Tensor:
        """Of two biases; made anew when one of them has changed."""
        state = tuple(number for one in biases for number in (one.data_ptr(), one._version))
        if name not in self.sums or self.sums[name][0] != state:
            self.sums[name] = state, torch.add(*biases)
        return self.sums[name][1]


@dataclass
class CudaTransformer:
    """The forward of one Transformer2DModel."""

    transformer: Any
    text: TextMemory

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        timestep: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        class_labels: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        attention_mask: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """hidden_states: (b f) c h w; encoder_hidden_states: (b f) n d. As diffusers' own."""
        own = self.transformer
        special = (attention_mask, encoder_attention_mask, class_labels, cross_attention_kwargs)
        plain = not _runs(own, hidden_states) or not _fits(own)
        if plain or any(one is not None for one in special) or encoder_hidden_states is None:
            return type(own).forward(
                own, hidden_states, encoder_hidden_states, timestep, added_cond_kwargs,
                class_labels, cross_attention_kwargs, attention_mask, encoder_attention_mask,
                return_dict,
            )  # fmt: skip
        given = hidden_states.contiguous(memory_format=torch.channels_last)
        x = _linear(own.proj_in, _rows(_group_norm(own.norm, given)))
        for block in own.transformer_blocks:
            x = self._block(block, x, encoder_hidden_states, given.shape)
        out = _pixels(_linear_add(own.proj_out, x, _rows(given)), given)
        return Transformer2DModelOutput(sample=out) if return_dict else (out,)

    def _block(self, block: Any, x: Tensor, states: Any, shape: torch.Size) -> Tensor:
        """x: (b f hw) c."""
        from . import kernels

        batch, pixels = shape[0], shape[2] * shape[3]
        self_attention, cross = block.attn1, block.attn2
        normed = kernels.layer_norm(x, block.norm1)
        qkv = _query_key_value(self_attention, normed).view(batch, pixels, 3, -1)
        mixed = _attend(*qkv.unbind(2), self_attention.heads)
        x = _linear_add(self_attention.to_out[0], mixed, x)
        normed = kernels.layer_norm(x, block.norm2)
        if not attention_fits(cross):  # an IP-Adapter's
            x = x + cross(normed.view(batch, pixels, -1), states).flatten(0, 1)
        else:
            keys, values = self.text.keys_values(cross, states)
            query = cross.to_q(normed).view(len(keys), -1, keys.shape[2])  # frames of one text
            x = _linear_add(cross.to_out[0], _attend(query, keys, values, cross.heads), x)
        return _feed_forward(block.ff.net, kernels.layer_norm(x, block.norm3), x)


@dataclass
class CudaTemporal:
    """The forward of one TemporalTransformer."""

    transformer: TemporalTransformer
    places: dict[Any, Tensor]
    """Positions by frames, channels, dtype and how they are read; all of a model's."""

    def forward(
        self,
        features: Tensor,
        frames: int,
        strength: float = 1.0,
        positions: Positions = AS_TRAINED,
    ) -> Tensor:
        """features: (b f) c h w -> the same shape."""
        from . import kernels

        own = self.transformer
        if not _runs(own, features) or frames > kernels.MAX_FRAMES:
            plain: Tensor = type(own).forward(own, features, frames, strength, positions)
            return plain
        given = features.contiguous(memory_format=torch.channels_last)
        pooled = frames if own.frame_norm == "clip" else 1
        pixels, places = given.shape[2] * given.shape[3], self._places(frames, given, positions)
        rows = _rows(given)
        normed = kernels.group_norm(rows, own.norm, given.shape[0] // pooled)
        x = F.linear(normed, own.proj_in.weight, own.proj_in.bias)
        for block in own.transformer_blocks:
            for attention, norm in zip(block.attention_blocks, block.norms, strict=True):  # type: ignore[arg-type]
                normed = kernels.layer_norm(x, norm, places, pixels)
                qkv = _query_key_value(attention, normed)
                mixed = kernels.attend_frames(qkv, frames, pixels, attention.heads)
                x = _linear_add(attention.to_out[0], mixed, x)
            normed = kernels.layer_norm(x, block.ff_norm)  # type: ignore[arg-type]
            x = _feed_forward(block.ff.net, normed, x)  # type: ignore[union-attr]
        return _pixels(_linear_add(own.proj_out, x, rows, strength), given)

    def _places(self, frames: int, like: Tensor, positions: Positions) -> Tensor:
        key = frames, like.shape[1], like.dtype, positions
        if key not in self.places:
            self.places[key] = sinusoids(frames, like.shape[1], like, positions)
        return self.places[key]


def norm_forward(norm: nn.GroupNorm) -> Callable[[Tensor], Tensor]:
    """The forward of a GroupNorm that stands alone."""
    from . import kernels

    def forward(x: Tensor) -> Tensor:
        last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
        if not last or torch.is_grad_enabled() or x.dtype != norm.weight.dtype:
            return type(norm).forward(norm, x)
        return _pixels(kernels.group_norm(_rows(x), norm, x.shape[0]), x)  # its hooks join frames

    return forward


def stack_projections(attention: Any) -> None:
    """Lay query, key and value weights behind one another, so that one product reads them all."""
    layers = (attention.to_q, attention.to_k, attention.to_v)
    if all(layer.weight.shape == layers[0].weight.shape for layer in layers):
        whole = torch.cat([layer.weight.detach() for layer in layers])
        for layer, part in zip(layers, whole.chunk(3), strict=True):
            layer.weight.data = part


def unstack_projections(attention: Any) -> None:
    """Each in a room of its own again."""
    for layer in (attention.to_q, attention.to_k, attention.to_v):
        layer.weight.data = layer.weight.data.clone()


def _query_key_value(attention: Any, x: Tensor) -> Tensor:
    """r c -> r 3c."""
    layers = (attention.to_q, attention.to_k, attention.to_v)
    first = layers[0].weight
    size = first.nbytes
    places = [layer.weight.data_ptr() - first.data_ptr() for layer in layers]
    if places == [0, size, 2 * size] and all(layer.bias is None for layer in layers):
        whole = first.as_strided((3 * first.shape[0], first.shape[1]), first.stride())
        return F.linear(x, whole)
    return torch.cat([layer(x) for layer in layers], dim=-1)


def _attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """b q c, b k c, b k c -> (b q) c."""
    parts = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (query, key, value))
    return F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2).flatten(0, 1)


def _feed_forward(net: Any, normed: Tensor, x: Tensor) -> Tensor:
    """x and what a GEGLU feed forward adds to it: r c."""
    from . import kernels

    project = net[0].proj
    if fused(normed, gated=True):
        gated = kernels.product(normed, project.weight, project.bias, gated=True)
    else:
        gated = kernels.gate(F.linear(normed, project.weight, project.bias))
    return _linear_add(net[2], gated, x)


def _linear_add(layer: Any, x: Tensor, other: Tensor, strength: float = 1.0) -> Tensor:
    """other + strength * layer(x): r i, r o -> r o."""
    from . import kernels

    weight = layer.weight.flatten(1)
    if fused(x, gated=False):
        return kernels.product(x, weight, layer.bias, other=other, strength=strength)
    return kernels.add(F.linear(x, weight), layer.bias, other, strength)


def fused(x: Tensor, *, gated: bool) -> bool:
    """Whether a product adds, or gates, in its own kernel: where bytes count more than FLOPs."""
    return x.element_size() == 2 and (gated or x.shape[1] <= 1280)


def _linear(layer: Any, x: Tensor) -> Tensor:
    """A linear layer, or a 1 x 1 convolution, over rows."""
    return F.linear(x, layer.weight.flatten(1), layer.bias)


def _convolve(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Without its bias."""
    y = F.conv2d(x, layer.weight, None, layer.stride, layer.padding)
    return y.contiguous(memory_format=torch.channels_last)


def _group_norm(
    norm: nn.GroupNorm, x: Tensor, *, silu: bool = False, bias: Tensor | None = None
) -> Tensor:
    """n c h w, over each frame, or over each clip where the model pools over its frames."""
    from . import kernels

    clips = x.shape[0] // (frames_pooled(norm) or 1)
    return _pixels(kernels.group_norm(_rows(x), norm, clips, silu=silu, bias=bias), x)


def _rows(x: Tensor) -> Tensor:
    """n c h w, channels last -> (n h w) c, a view."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def _pixels(rows: Tensor, like: Tensor) -> Tensor:
    """(n h w) c -> n c h w, a view."""
    return rows.unflatten(0, (like.shape[0], *like.shape[2:])).permute(0, 3, 1, 2)


def _runs(module: nn.Module, x: Tensor) -> bool:
    """Whether a call takes the kernels: no gradients, one dtype, and no hooks on inner layers."""
    weight = next(module.parameters())
    if torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type):
        return False
    return x.dtype == weight.dtype and not any(map(_is_hooked, _inner(module)))


def _inner(module: nn.Module) -> Iterator[nn.Module]:
    """Layers whose weights the kernels read in the place of the layers' forwards."""
    for name, child in module.named_children():
        if name != "processor":  # an IP-Adapter's runs as it is
            yield child
            yield from _inner(child)


def _is_hooked(layer: nn.Module) -> bool:
    if not (layer._forward_hooks or layer._forward_pre_hooks):
        return False
    return not (isinstance(layer, nn.GroupNorm) and frames_pooled(layer) is not None)


def _fits(transformer: Any) -> bool:
    blocks = transformer.transformer_blocks
    return fits(transformer) and all(attention_fits(block.attn1) for block in blocks)
