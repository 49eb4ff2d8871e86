"""The motion module: one small temporal transformer for every site of the UNet.

Structure, names and arithmetic are those of the official `motion_module.py`, so that state-dict
keys are the official ones. Positions are computed, unless a file has others.

Legend: b batch, f frames, c channels, h w latent size, s = b*h*w sequences, p attention heads.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import MotionConfig, Norm


@dataclass(frozen=True, kw_only=True)
class Positions:
    """Where frames, counted from 0 in what is denoised together, read the table of positions: at
    offset + stretch * frame, between two rows where that is no whole number."""

    stretch: float = 1.0
    """Above 0; below 1 the frames lie nearer together than the module was trained on."""
    offset: float = 0.0
    """0 or more."""

    def last(self, frames: int) -> float:
        """The furthest place that so many frames read."""
        return self.offset + self.stretch * (frames - 1)

    def fit(self, frames: int, max_frames: int) -> bool:
        """Whether so many frames stay within a module's positions."""
        return self.last(frames) <= max_frames - 1 + 1e-6


AS_TRAINED = Positions()


class MotionModule(nn.Module):
    """All temporal transformers of one UNet; fresh ones leave the image model unchanged.

    Keys: `{down_blocks.I | up_blocks.I | mid_block}.motion_modules.J.temporal_transformer.…`, and
    PIA's `conv_in.{weight,bias}`.
    """

    def __init__(self, config: MotionConfig) -> None:
        super().__init__()
        self.config = config
        channels, layers = config.block_out_channels, config.layers_per_block
        self.conv_in: nn.Conv2d | None = None
        if config.conv_in_channels is not None:
            self.conv_in = nn.Conv2d(config.conv_in_channels, channels[0], 3, padding=1)
            nn.init.zeros_(self.conv_in.weight)
            nn.init.zeros_(self.conv_in.bias)  # type: ignore[arg-type]
        self.down_blocks = nn.ModuleList(_Block(c, layers, config) for c in channels)
        self.mid_block = _Block(channels[-1], 1, config) if config.mid_block else None
        self.up_blocks = nn.ModuleList(_Block(c, layers + 1, config) for c in reversed(channels))


class _Block(nn.Module):
    def __init__(self, channels: int, layers: int, config: MotionConfig) -> None:
        super().__init__()
        self.motion_modules = nn.ModuleList(_Site(channels, config) for _ in range(layers))


class _Site(nn.Module):
    """Only a name: the official code wraps each transformer once."""

    def __init__(self, channels: int, config: MotionConfig) -> None:
        super().__init__()
        self.temporal_transformer = TemporalTransformer(channels, config)


class TemporalTransformer(nn.Module):
    """Lets the same pixel of all frames talk to each other (paper section 4.2, appendix D).

    `attentions` in its one block: 2, or 1 in SparseCtrl's encoder.
    """

    def __init__(self, channels: int, config: MotionConfig, *, attentions: int = 2) -> None:
        super().__init__()
        self.frame_norm: Norm = config.frame_norm
        self.max_frames = config.max_frames
        self.norm = nn.GroupNorm(config.norm_num_groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList(
            [_TransformerBlock(channels, config.num_attention_heads, attentions)]
        )
        self.proj_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(
        self,
        features: Tensor,
        frames: int,
        strength: float = 1.0,
        positions: Positions = AS_TRAINED,
    ) -> Tensor:
        """features: (b f) c h w -> the same shape; `strength` scales the residual."""
        _, channels, height, width = features.shape
        x = self._normalize(features, frames)
        x = x.flatten(2).unflatten(0, (-1, frames))  # b f c hw
        x = x.permute(0, 3, 1, 2).flatten(0, 1)  # s f c
        x = self.proj_in(x)
        places = self.places(frames, x, positions)
        for block in self.transformer_blocks:
            x = block(x, places)
        x = self.proj_out(x)
        x = x.unflatten(0, (-1, height * width)).permute(0, 2, 3, 1)  # b f c hw
        x = x.flatten(0, 1).unflatten(2, (height, width))  # (b f) c h w
        moved: Tensor = features + (x if strength == 1.0 else x * strength)
        return moved

    @property
    def has_own_positions(self) -> bool:
        """Whether an attention has positions of its file."""
        return any(table is not None for table in self._tables)

    @property
    def _tables(self) -> list[Tensor | None]:
        (block,) = self.transformer_blocks
        return [attention.positions for attention in block.attention_blocks]  # type: ignore[union-attr]

    def places(self, frames: int, like: Tensor, at: Positions) -> list[Tensor]:
        """Frame positions of each attention, f c."""
        computed = sinusoids(frames, like.shape[-1], like, at)
        tables = self._tables
        return [computed if own is None else _rows(own, frames, at, like) for own in tables]

    def _normalize(self, features: Tensor, frames: int) -> Tensor:
        if self.frame_norm == "frame":
            normed: Tensor = self.norm(features)
            return normed
        return clip_group_norm(self.norm, features, frames)


def clip_group_norm(norm: nn.GroupNorm, features: Tensor, frames: int) -> Tensor:
    """A GroupNorm whose statistics cover all frames of a clip: (b f) c h w -> the same."""
    clips = features.unflatten(0, (-1, frames)).transpose(1, 2)  # b c f h w
    normed = F.group_norm(clips, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return normed.transpose(1, 2).flatten(0, 1)


def sinusoids(frames: int, channels: int, like: Tensor, at: Positions = AS_TRAINED) -> Tensor:
    """Frame positions, f c: even channels sine, odd cosine (Vaswani et al., section 3.5)."""
    if at != AS_TRAINED:
        table = sinusoids(int(at.last(frames)) + 2, channels, like.new_empty(0).float())
        return _rows(table, frames, at, like)
    position = torch.arange(frames, device=like.device, dtype=torch.float32).unsqueeze(1)
    even = torch.arange(0, channels, 2, device=like.device, dtype=torch.float32)
    angle = position * torch.exp(even * (-math.log(10000.0) / channels))
    return torch.stack((angle.sin(), angle.cos()), dim=2).flatten(1).to(like.dtype)


def _rows(table: Tensor, frames: int, at: Positions, like: Tensor) -> Tensor:
    """Rows of a table of positions for some frames, f c, between two rows where that is asked."""
    table = table.to(like.device)
    if at == AS_TRAINED:
        return table[:frames].to(like.dtype)
    places = [at.last(number) for number in range(1, frames + 1)]
    rows = torch.tensor([int(place) for place in places]).to(table.device, non_blocking=True)
    shares = torch.tensor([place % 1 for place in places]).to(table, non_blocking=True)
    after = (rows + 1).clamp(max=len(table) - 1)
    return torch.lerp(table[rows], table[after], shares.unsqueeze(1)).to(like.dtype)


class _TransformerBlock(nn.Module):
    def __init__(self, channels: int, heads: int, attentions: int) -> None:
        super().__init__()
        count = range(attentions)
        self.attention_blocks = nn.ModuleList(FrameAttention(channels, heads) for _ in count)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in count)
        self.ff = _FeedForward(channels)
        self.ff_norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, places: list[Tensor]) -> Tensor:
        for attention, norm, place in zip(self.attention_blocks, self.norms, places, strict=True):
            x = x + attention(norm(x) + place)
        out: Tensor = x + self.ff(self.ff_norm(x))
        return out


class FrameAttention(nn.Module):
    """Self-attention over frames; positions reach query, key and value alike."""

    positions: Tensor | None
    """The file's own, frames x channels, where they are not the sinusoids."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.register_buffer("positions", None, persistent=False)
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(channels, channels, bias=False)
        self.to_v = nn.Linear(channels, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            project(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # s p f c/p
            for project in (self.to_q, self.to_k, self.to_v)
        )
        if torch.is_grad_enabled() and x.device.type == "cpu":
            # the fused kernel's backward is slow on the CPU
            weights = (query @ key.transpose(2, 3)) * query.shape[-1] ** -0.5
            mixed = weights.softmax(-1) @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.to_out[0](mixed.transpose(1, 2).flatten(2))
        return out


class _FeedForward(nn.Module):
    """GEGLU; the empty slot keeps the official indices 0 and 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.ModuleList(
            [GatedLinear(channels), nn.Identity(), nn.Linear(4 * channels, channels)]
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net[2](self.net[0](x))
        return out


class GatedLinear(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 8 * channels)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        gated: Tensor = value * F.gelu(gate)
        return gated
