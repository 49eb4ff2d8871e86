"""Context windows: the overlapping parts of a long clip that are denoised together.

A motion module knows a few frames at most. A longer clip is predicted window by window in every
step; where windows overlap, their predictions are averaged by weights that sum to 1 in each frame.

Legend: b batch, f frames, k frames of a window, c channels, h w latent size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..jobs import Window


@dataclass(frozen=True)
class ContextWindow:
    """One context window of one step."""

    frames: Tensor
    """Numbers of its frames in their order, k, on the CPU; a window around the clip's end wraps."""
    weights: Tensor
    """Weight of its prediction in each of these frames, k, above 0 up to 1, on the CPU."""

    def add_to(self, whole: Tensor, predicted: Tensor) -> None:
        """Add its weighted prediction, b c k h w, to the clip's, b c f h w, in place."""
        weights = self.weights.view(-1, 1, 1).to(predicted, non_blocking=True)
        frames = self.frames.to(whole.device, non_blocking=True)
        whole[:, :, frames] += predicted * weights  # no frame is in a window twice


def is_divided(window: Window | None, frames: int) -> bool:
    """Whether a clip is denoised in context windows: if it is longer than one, or loops."""
    if window is None:
        return False
    return frames > window.length or window.schedule == "looped_uniform"


def window_length(window: Window | None, frames: int) -> int:
    """Frames that the model sees at once."""
    return frames if window is None else min(window.length, frames)


def max_stride(window: Window, frames: int) -> int:
    """The largest `stride` with which a window of its widest scale still lies within the clip."""
    length = window_length(window, frames)
    scales = 1
    while (length - 1) * 2**scales < frames:
        scales += 1
    return scales


def context_windows(window: Window, frames: int, step: int) -> list[ContextWindow]:
    """All windows of a step, counted from 0, with weights that sum to 1 in every frame."""
    numbers = window_frames(window, frames, step)
    raw = [_weights(window, frames, one) for one in numbers]
    total = torch.zeros(frames, dtype=torch.float64)
    tensors = [torch.tensor(one) for one in numbers]
    for own, weights in zip(tensors, raw, strict=True):
        total[own] += weights
    return [
        ContextWindow(own, (weights / total[own]).float())
        for own, weights in zip(tensors, raw, strict=True)
    ]


def window_frames(window: Window, frames: int, step: int) -> list[list[int]]:
    """The frames of each window of a step. Together they cover the clip, each frame once in each.

    Neighbours share at least `overlap` frames. Uniform windows are shifted from step to step, so
    that their seams move; static ones do not move.
    """
    length = window_length(window, frames)
    if window.schedule == "standard_static":
        return [list(range(s, s + length)) for s in _starts(window, length, frames, 1, 0.0)]
    shift = reversed_bits(step)
    found = []
    for scale in (2**i for i in range(window.stride)):
        if window.schedule == "looped_uniform":
            first = round(frames * shift) + int(shift * scale)
            starts = list(range(first, first + frames, window.length * scale - window.overlap))
        else:
            starts = _starts(window, length, frames, scale, shift)
        found += [[(start + i * scale) % frames for i in range(length)] for start in starts]
    return found


def _starts(window: Window, length: int, frames: int, scale: int, shift: float) -> list[int]:
    """First frames of windows that end with the clip at the latest; `shift` is 0 up to 1 hops."""
    last = frames - (length - 1) * scale - 1
    hop = length * scale - window.overlap
    return sorted({min(int(scale * shift), last), last, *range(int(hop * shift), last, hop)})


def reversed_bits(step: int) -> float:
    """0, 1/2, 1/4, 3/4, 1/8, ...: fractions that fill 0 to 1 evenly however few are taken."""
    value, half = 0.0, 0.5
    while step:
        value += half * (step & 1)
        step, half = step >> 1, half / 2
    return value


def _weights(window: Window, frames: int, numbers: list[int]) -> Tensor:
    """Weight of a window in each of its frames, before they are scaled to sum 1."""
    length = len(numbers)
    near = torch.arange(1, length + 1, dtype=torch.float64)
    if window.fuse == "flat":
        return torch.ones_like(near)
    edge = torch.minimum(near, near.flip(0))  # 1 2 3 .. 3 2 1
    if window.fuse == "pyramid":  # FreeNoise, arXiv 2310.15169, section 3.2
        return edge
    looped = window.schedule == "looped_uniform"
    ramp = (near / (window.overlap + 1)).clamp(max=1)
    before = ramp if looped or numbers[0] > 0 else torch.ones_like(ramp)
    after = ramp.flip(0) if looped or numbers[-1] < frames - 1 else torch.ones_like(ramp)
    return torch.minimum(before, after)
