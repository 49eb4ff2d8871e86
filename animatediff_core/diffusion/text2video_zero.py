"""Text2Video-Zero (arXiv 2303.13439): clips from an image model alone, without a motion module.

One frame is denoised for a few steps. Its latents are copied to every frame, moved along a motion
field and noised again (sections 3.3.1, algorithm 1). The frames are then denoised together, with
each self-attention reading the first frame (section 3.3.2).

Legend: b batch, f frames, c channels, h w latent size, n tokens, d features.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor, nn
from torch.nn.functional import grid_sample

FIELD_SIZE = 512
"""Side of the square in whose pixels a motion field is measured, whatever the clip's size."""


@contextmanager
def cross_frame_attention(unet: UNet2DConditionModel, frames: int) -> Iterator[None]:
    """Self-attention reads keys and values of the first of `frames` frames (section 3.3.2).

    Text attention and the attention processors in use stay as they are.
    """
    attentions = [m.attn1 for m in unet.modules() if isinstance(m, BasicTransformerBlock)]
    read_first = _reads_first_frame(frames)
    hooks = [one.register_forward_pre_hook(read_first, with_kwargs=True) for one in attentions]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


Inputs = tuple[tuple[Any, ...], dict[str, Any]]
Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Inputs]


def _reads_first_frame(frames: int) -> Hook:
    def hook(attention: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> Inputs:
        tokens: Tensor = inputs[0]  # (b f) n d
        first = tokens.unflatten(0, (-1, frames))[:, :1]  # b 1 n d
        first = first.expand(-1, frames, -1, -1).flatten(0, 1)
        return inputs, {**options, "encoder_hidden_states": first}

    return hook


def moved_frames(latents: Tensor, frames: int, motion: tuple[float, float]) -> Tensor:
    """Copies of one frame's latents, moved a step further in each frame.

    latents: b c 1 h w. motion: x and y offset per frame where the sampled content is read, in
    pixels of a 512 x 512 image; positive values move the content left and up. The nearest latent
    is taken; beyond the border the latents are mirrored. Returns b c f h w.
    """
    moved = [latents[:, :, 0]]
    moved += [_read_at(latents[:, :, 0], (motion[0] * k, motion[1] * k)) for k in range(1, frames)]
    return torch.stack(moved, dim=2)


def _read_at(image: Tensor, offset: tuple[float, float]) -> Tensor:
    """Values of an image b c h w at every position plus an offset of 512-pixel units.

    The official code counts positions from pixel corners, hence the half pixel.
    """
    height, width = image.shape[-2:]
    axes = [
        ((torch.arange(size, dtype=torch.float32) + 0.5) / size + (shift - 0.5) / FIELD_SIZE)
        for size, shift in ((width, offset[0]), (height, offset[1]))
    ]
    x, y = torch.meshgrid(*axes, indexing="xy")  # h w
    grid = torch.stack((x, y), dim=-1).mul(2).sub(1).expand(len(image), -1, -1, -1).to(image)
    return grid_sample(image, grid, mode="nearest", padding_mode="reflection", align_corners=False)


def noised_again(
    latents: Tensor, scheduler: SchedulerMixin, timestep: int, noisier: int, noise: Tensor
) -> Tensor:
    """Latents at `timestep` brought to the higher noise of timestep `noisier` (DDPM's forward).

    latents and noise: b c f h w of the same shape.
    """
    signal = float(torch.prod(scheduler.alphas[timestep:noisier]))
    return math.sqrt(signal) * latents + math.sqrt(1 - signal) * noise


def background_smoothed(latents: Tensor, moved: Tensor, background: Tensor, share: float) -> Tensor:
    """Latents whose background comes from the first frame's, moved (section 3.3.3).

    latents: b c f h w; moved: the first frame's latents along the motion field, b c f h w;
    background: 1 1 f h w, 1 where neither frame has the subject; share: of the frame's own
    latents, 0..1.
    """
    return torch.lerp(latents, share * latents + (1 - share) * moved, background.to(latents))
