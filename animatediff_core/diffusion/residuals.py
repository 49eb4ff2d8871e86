"""ControlNets, SparseCtrl and T2I-Adapters in the denoise loop: what they add to one UNet call.

Legend: b batch, f frames, c channels, h w latent size, H W pixels, n tokens, d features.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Union

import torch
from torch import Tensor

from ..motion import Conditions, added_conditions
from ..motion.sparse_ctrl import SparseControlNet

if TYPE_CHECKING:  # slow to import, and few jobs use one
    from diffusers.models import ControlNetModel
    from diffusers.models.adapter import T2IAdapter


@dataclass(frozen=True, kw_only=True)
class Control:
    """One control model with what it reads and how strongly it acts."""

    model: Union["ControlNetModel", SparseControlNet, "T2IAdapter"]
    condition: Tensor
    """1 c f h w for all frames of the clip: pictures of a ControlNet or a T2I-Adapter, c = 3, H W,
    0 to 1; for SparseCtrl see `sparse_condition`."""
    strength: float = 1.0
    """Factor on what it adds, 0 or more."""
    start: float = 0.0
    """Share of the steps before it acts, 0 to 1."""
    end: float = 1.0
    """Share of the steps after which it acts no more, above start."""
    weights: tuple[float, ...] = ()
    """A further factor for each frame of the clip; none is 1 everywhere."""

    @property
    def pools(self) -> bool:
        """Whether the model says one thing for a whole picture."""
        settings: Any = getattr(self.model, "config", None)
        return bool(getattr(settings, "global_pool_conditions", False))

    @property
    def adapts(self) -> bool:
        """Whether it is a T2I-Adapter, which reads its pictures alone."""
        from diffusers.models.adapter import T2IAdapter

        return isinstance(self.model, T2IAdapter)


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Where in a sampling run one call of the UNet stands."""

    step: int
    """0 for the first."""
    steps: int
    frames: Tensor | None
    """Numbers of the clip's frames in the call, k, on the CPU: a window's; None is all."""
    away: bool = False
    """Whether the call is that of the negative prompt."""

    def within(self, control: Control) -> bool:
        """Whether a control acts in this call, as in diffusers: the step lies within its share. One
        that pools over the picture (shuffle) leads towards the prompt only.
        """
        if self.away and control.pools:
            return False
        return (
            self.step / self.steps >= control.start and (self.step + 1) / self.steps <= control.end
        )


def add_residuals(
    controls: Sequence[Control],
    moment: Moment,
    sample: Tensor,
    timestep: int | Tensor,
    text: Tensor,
    conditions: Conditions | None,
) -> Conditions | None:
    """The conditions with what all acting controls add to this call.

    The others are the arguments of that call: sample b c f h w with the moment's frames, as the
    UNet gets it; text b n d or b f n d.
    """
    acting = [one for one in controls if one.strength != 0 and moment.within(one)]
    if not acting:
        return conditions
    given = conditions or Conditions()
    down, mid, inner = given.down_residuals, given.mid_residual, given.adapter_residuals
    for one in acting:
        if one.adapts:
            more = _inner_residuals(one, moment, sample)
            inner = tuple(map(torch.add, inner, more)) if inner else more
            continue
        more_down, more_mid = _residuals(one, moment, sample, timestep, text, given)
        down = tuple(map(torch.add, down, more_down)) if down else more_down
        mid = more_mid if mid is None else mid + more_mid
    return replace(given, down_residuals=down, mid_residual=mid, adapter_residuals=inner)


def _residuals(
    control: Control,
    moment: Moment,
    sample: Tensor,
    timestep: int | Tensor,
    text: Tensor,
    given: Conditions,
) -> tuple[tuple[Tensor, ...], Tensor]:
    batch, _, frames = sample.shape[:3]
    states = text.flatten(0, 1) if text.ndim == 4 else text.repeat_interleave(frames, 0)
    time = torch.as_tensor(timestep, device=sample.device).expand(batch)
    picked = _picked(control, moment, sample)
    model: Any = control.model
    if isinstance(model, SparseControlNet):
        down, mid = model(picked, time, states)
    else:
        down, mid = model(
            sample.transpose(1, 2).flatten(0, 1),  # (b f) c h w
            time.repeat_interleave(frames),
            states,
            picked.transpose(1, 2).flatten(0, 1),  # (b f) 3 H W
            added_cond_kwargs=added_conditions(given, frames),
            return_dict=False,
        )
    scale = _scale(control, moment, sample)
    return tuple(one * scale for one in down), mid * scale


def _inner_residuals(control: Control, moment: Moment, sample: Tensor) -> tuple[Tensor, ...]:
    adapter: Any = control.model
    picked = _picked(control, moment, sample).transpose(1, 2).flatten(0, 1)  # (b f) 3 H W
    if adapter.config.in_channels == 1:
        luma = torch.tensor(_LUMA).view(1, 3, 1, 1).to(picked, non_blocking=True)
        picked = (picked * luma).sum(1, keepdim=True)
    scale = _scale(control, moment, sample)
    return tuple(one * scale for one in adapter(picked))


_LUMA = (0.299, 0.587, 0.114)
"""Of red, green and blue in a grey, as Pillow and the official code have it (ITU-R BT.601)."""


def _numbers(moment: Moment, sample: Tensor) -> Tensor:
    """Of the clip's frames in the call, on the CPU."""
    return torch.arange(sample.shape[2]) if moment.frames is None else moment.frames


def _picked(control: Control, moment: Moment, sample: Tensor) -> Tensor:
    """The condition of the call's frames, b c f h w."""
    numbers = _numbers(moment, sample).to(control.condition.device, non_blocking=True)
    picked = control.condition.index_select(2, numbers).to(sample, non_blocking=True)
    return picked.expand(sample.shape[0], -1, -1, -1, -1)


def _scale(control: Control, moment: Moment, sample: Tensor) -> Tensor:
    """Strength by frame, (b f) 1 1 1."""
    numbers = _numbers(moment, sample).tolist()
    weights = [control.weights[i] for i in numbers] if control.weights else [1.0] * len(numbers)
    scale = (torch.tensor(weights) * control.strength).to(sample, non_blocking=True)
    return scale.repeat(sample.shape[0]).view(-1, 1, 1, 1)
