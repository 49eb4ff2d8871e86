"""ControlNets, SparseCtrl and T2I-Adapters in the denoising loop: the residuals of one UNet call.

Legend: b batch, f frames, k frames of a window, c channels, h w latent size, H W pixels, n tokens,
d features.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Union

import torch
from torch import Tensor

from ..motion import Conditions, added_conditions
from ..motion.conditions import fold_frames, text_by_frame
from ..motion.sparse_ctrl import Residuals, SparseControlNet
from .step_info import StepInfo

if TYPE_CHECKING:  # slow to import, and few jobs use one
    from diffusers.models import ControlNetModel
    from diffusers.models.adapter import T2IAdapter

_LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey (ITU-R BT.601), as Pillow and the official code."""


@dataclass(frozen=True, kw_only=True)
class Control:
    """One control model with its input and its strength."""

    model: Union["ControlNetModel", SparseControlNet, "T2IAdapter"]
    condition: Tensor
    """Input for all frames of the clip, 1 c f h w: images of a ControlNet or T2I-Adapter, c = 3,
    H W, 0 to 1; for SparseCtrl see `sparse_condition`."""
    strength: float = 1.0
    """Factor of the residuals, 0 or more."""
    start: float = 0.0
    """Share of the steps before it acts, 0 to 1."""
    end: float = 1.0
    """Share of the steps after which it no longer acts, above start."""
    weights: tuple[float, ...] = ()
    """A further factor for each frame of the clip; empty is 1 everywhere."""

    def acts(self, info: StepInfo, *, uncond: bool) -> bool:
        """Whether it acts in a call of this step, as in diffusers.

        ControlNets that pool over the image (shuffle) apply to the conditional branch only.
        """
        config: Any = getattr(self.model, "config", None)
        if self.strength == 0 or (uncond and getattr(config, "global_pool_conditions", False)):
            return False
        step, steps = info.index, info.scheduled
        return step / steps >= self.start and (step + 1) / steps <= self.end

    @property
    def is_t2i_adapter(self) -> bool:
        """Whether it reads its images alone, without the noisy clip."""
        from diffusers.models.adapter import T2IAdapter

        return isinstance(self.model, T2IAdapter)


def add_residuals(
    controls: Sequence[Control],
    sample: Tensor,
    timestep: int | Tensor,
    text: Tensor,
    conditions: Conditions,
    frames: Tensor | None = None,
) -> Conditions:
    """The conditions of a UNet call with the residuals of the control models that act in it.

    sample b c k h w, timestep, text b n d or b k n d: the arguments of the call; frames: numbers of
    the clip's frames in it, k, on the CPU; None is all.
    """
    down, mid = conditions.down_residuals, conditions.mid_residual
    inner = conditions.adapter_residuals
    if not controls:
        return conditions
    numbers = torch.arange(sample.shape[2]) if frames is None else frames
    for control in controls:
        image = _input(control, numbers, sample)
        scale = _scale(control, numbers, sample)
        if control.is_t2i_adapter:
            features = _t2i_features(control.model, image, scale)
            inner = tuple(map(torch.add, inner, features)) if inner else features
            continue
        new_down, new_mid = _residuals(control.model, image, sample, timestep, text, conditions)
        new_down, new_mid = tuple(one * scale for one in new_down), new_mid * scale
        down = tuple(map(torch.add, down, new_down)) if down else new_down
        mid = new_mid if mid is None else mid + new_mid
    return replace(conditions, down_residuals=down, mid_residual=mid, adapter_residuals=inner)


def _residuals(
    model: Any,
    image: Tensor,
    sample: Tensor,
    timestep: int | Tensor,
    text: Tensor,
    conditions: Conditions,
) -> Residuals:
    """Residuals at full strength. image: b c k h w."""
    batch, _, frames = sample.shape[:3]
    states = text_by_frame(text, frames)
    time = torch.as_tensor(timestep, device=sample.device).expand(batch)
    if isinstance(model, SparseControlNet):
        residuals: Residuals = model(image, time, states)
        return residuals
    down, mid = model(
        fold_frames(sample),
        time.repeat_interleave(frames),
        states,
        fold_frames(image),  # (b k) 3 H W
        added_cond_kwargs=added_conditions(conditions, frames),
        return_dict=False,
    )
    return tuple(down), mid


def _t2i_features(adapter: Any, image: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    """Features of a T2I-Adapter for the down blocks, each (b k) c h w. image: b 3 k H W."""
    images = fold_frames(image)
    if adapter.config.in_channels == 1:
        luma = torch.tensor(_LUMA).view(1, 3, 1, 1).to(images, non_blocking=True)
        images = (images * luma).sum(1, keepdim=True)
    return tuple(one * scale for one in adapter(images))


def _input(control: Control, frames: Tensor, sample: Tensor) -> Tensor:
    """The control model's input for some frames, b c k h w."""
    numbers = frames.to(control.condition.device, non_blocking=True)
    image = control.condition.index_select(2, numbers).to(sample, non_blocking=True)
    return image.expand(sample.shape[0], -1, -1, -1, -1)


def _scale(control: Control, frames: Tensor, sample: Tensor) -> Tensor:
    """Strength by frame, (b k) 1 1 1."""
    numbers = frames.tolist()
    weights = [control.weights[i] for i in numbers] if control.weights else [1.0] * len(numbers)
    scale = (torch.tensor(weights) * control.strength).to(sample, non_blocking=True)
    return scale.repeat(sample.shape[0]).view(-1, 1, 1, 1)
