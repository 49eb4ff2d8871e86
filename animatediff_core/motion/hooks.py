"""The forward hooks that animate a UNet, and the state of the call in progress that they read.

Legend: b batch, f frames, c channels, h w latent size, n tokens, d features.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .conditions import NO_CONDITIONS, Conditions, fold_frames, unfold_frames
from .module import TemporalTransformer


@dataclass
class CallState:
    """The call in progress of one model, as its hooks see it."""

    frames: int | None = None
    """Frames of each clip; None if no call is in progress."""
    conditions: Conditions = NO_CONDITIONS
    text: Tensor | None = None
    """The text, b n d, if all frames share it."""

    def begin(self, frames: int, conditions: Conditions, text: Tensor | None = None) -> None:
        """A call begins."""
        self.frames, self.conditions, self.text = frames, conditions, text

    def end(self) -> None:
        """The call is over."""
        self.frames, self.conditions, self.text = None, NO_CONDITIONS, None

    @contextmanager
    def repeated(self, call: "CallState") -> Iterator[None]:
        """Context manager: the hooks see an earlier call again."""
        before = replace(self)
        self.begin(call.frames, call.conditions, call.text)  # type: ignore[arg-type]
        try:
            yield
        finally:
            self.begin(before.frames, before.conditions, before.text)  # type: ignore[arg-type]


class MotionHook:
    """After a layer of the UNet: passes its output through a temporal transformer."""

    def __init__(self, transformer: TemporalTransformer, call: CallState, block: str = "") -> None:
        self.transformer = transformer
        self.call = call
        self.block = block

    def __call__(
        self, layer: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]
    ) -> Tensor | tuple[Tensor, ...] | None:
        frames, conditions = self.call.frames, self.call.conditions
        strength = conditions.motion_strength * conditions.motion_blocks.get(self.block, 1.0)
        if frames is None or strength == 0:
            return None
        if isinstance(output, tuple):
            return (self._animated(output[0], frames, strength), *output[1:])
        return self._animated(output, frames, strength)

    def _animated(self, features: Tensor, frames: int, strength: float) -> Tensor:
        """(b f) c h w -> the same shape."""
        conditions = self.call.conditions
        out: Tensor = self.transformer(features, frames, strength, conditions.motion_positions)
        if conditions.motion_frames is None:
            return out
        weights = conditions.motion_frames.to(out).repeat(len(out) // frames)  # (b f)
        return torch.lerp(features, out, weights.view(-1, 1, 1, 1))


@dataclass
class ImageHook:
    """After the UNet's conv_in: adds PIA's convolution of the PIA mask and the image's latents.

    The base model's weights read the noisy latents, PIA's the channels after them, as in diffusers'
    UNetMotionModel.from_unet2d.
    """

    conv: nn.Conv2d
    call: CallState

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if (latents := self.call.conditions.image_latents) is None:
            return output
        image = fold_frames(latents)  # (b f) 5 h w
        weight = self.conv.weight[:, inputs[0].shape[1] :]
        return output + F.conv2d(image.to(output), weight.to(output), padding=self.conv.padding)


@dataclass
class JoinFrames:
    """Before a GroupNorm: (b f) c h w -> b c (f h) w, so that it pools over the clip."""

    call: CallState

    def __call__(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self.call.frames is None:
            return None
        return (unfold_frames(inputs[0], self.call.frames).flatten(2, 3),)


@dataclass
class SplitFrames:
    """After that GroupNorm: b c (f h) w -> (b f) c h w."""

    call: CallState

    def __call__(self, norm: nn.Module, inputs: object, output: Tensor) -> Tensor | None:
        if self.call.frames is None:
            return None
        return fold_frames(output.unflatten(2, (self.call.frames, -1)))


def frames_pooled(norm: nn.Module) -> int | None:
    """The frames that a GroupNorm pools over in the call in progress, 1 for each frame alone; None
    if other hooks are on it."""
    frames = 1
    for hook in (*norm._forward_pre_hooks.values(), *norm._forward_hooks.values()):
        if not isinstance(hook, (JoinFrames, SplitFrames)):
            return None
        frames = hook.call.frames or 1
    return frames
