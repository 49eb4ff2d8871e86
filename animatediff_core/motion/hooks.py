"""The forward hooks that animate a UNet, and what they know of the call in progress.

Legend: b batch, f frames, c channels, h w latent size, n tokens, d features.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .module import AS_TRAINED, Positions, TemporalTransformer


@dataclass
class Clip:
    """What the hooks of one model need to know of the call in progress."""

    frames: int | None = None
    strength: float = 1.0
    blocks: Mapping[str, float] = field(default_factory=dict)
    weights: Tensor | None = None
    """Scale of the residual by frame, f."""
    positions: Positions = AS_TRAINED
    text: Tensor | None = None
    """Of all frames alike, b n d."""
    image: Tensor | None = None
    """PIA's mask and picture, (b f) 5 h w."""
    pictures: tuple[Tensor, ...] = ()
    """Scale of what each IP-Adapter adds by frame, f; none is 1 everywhere."""

    @contextmanager
    def seen(self, other: "Clip") -> Iterator[None]:
        """Within it this is another call's."""
        before = replace(self)
        vars(self).update(vars(other))
        try:
            yield
        finally:
            vars(self).update(vars(before))


class MotionHook:
    def __init__(self, transformer: TemporalTransformer, clip: Clip, block: str = "") -> None:
        self.transformer = transformer
        self.clip = clip
        self.block = block

    def __call__(
        self, layer: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]
    ) -> Tensor | tuple[Tensor, ...] | None:
        frames = self.clip.frames
        strength = self.clip.strength * self.clip.blocks.get(self.block, 1.0)
        if frames is None or strength == 0:
            return None
        if isinstance(output, tuple):
            return (self._moved(output[0], frames, strength), *output[1:])
        return self._moved(output, frames, strength)

    def _moved(self, features: Tensor, frames: int, strength: float) -> Tensor:
        moved: Tensor = self.transformer(features, frames, strength, self.clip.positions)
        if self.clip.weights is None:
            return moved
        weights = self.clip.weights.to(moved).repeat(len(moved) // frames)
        return torch.lerp(features, moved, weights.view(-1, 1, 1, 1))


@dataclass
class ImageHook:
    """After the UNet's conv_in: adds what PIA's convolution makes of mask and picture.

    The base model's weights serve the noisy latents, PIA's the channels after them, as in
    diffusers' UNetMotionModel.from_unet2d.
    """

    conv: nn.Conv2d
    clip: Clip

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if (image := self.clip.image) is None:
            return output
        weight = self.conv.weight[:, inputs[0].shape[1] :]
        return output + F.conv2d(image.to(output), weight.to(output), padding=self.conv.padding)


@dataclass
class PictureHook:
    """After an IP-Adapter's projection to values: scales those of each frame, and with them, as
    attention is linear in its values, what the adapter adds there."""

    clip: Clip
    number: int
    """Which of the adapters."""

    def __call__(self, layer: nn.Module, inputs: object, output: Tensor) -> Tensor | None:
        if self.clip.frames is None or not self.clip.pictures:
            return None
        weights = self.clip.pictures[self.number].to(output)
        each = weights.repeat(len(output) // self.clip.frames)  # (b f)
        return output * each.view(-1, *[1] * (output.ndim - 1))


@dataclass
class JoinFrames:
    """Before a GroupNorm: (b f) c h w -> b c (f h) w, so that it pools over the clip."""

    clip: Clip

    def __call__(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self.clip.frames is None:
            return None
        clips = inputs[0].unflatten(0, (-1, self.clip.frames)).transpose(1, 2)  # b c f h w
        return (clips.flatten(2, 3),)


def frames_pooled(norm: nn.Module) -> int | None:
    """How many frames a GroupNorm of the UNet pools over, 1 for each alone; None where a hook that
    is not ours is on it."""
    frames = 1
    for hook in (*norm._forward_pre_hooks.values(), *norm._forward_hooks.values()):
        if not isinstance(hook, (JoinFrames, SplitFrames)):
            return None
        frames = hook.clip.frames or 1
    return frames


@dataclass
class SplitFrames:
    """After that GroupNorm: b c (f h) w -> (b f) c h w."""

    clip: Clip

    def __call__(self, norm: nn.Module, inputs: object, output: Tensor) -> Tensor | None:
        if self.clip.frames is None:
            return None
        clips: Tensor = output.unflatten(2, (self.clip.frames, -1))  # b c f h w
        folded: Tensor = clips.transpose(1, 2).flatten(0, 1)
        return folded
