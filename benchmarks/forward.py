"""One guided forward of a UNet, ours against diffusers' UNetMotionModel on the same weights.

diffusers runs channels-last and SDPA, both halves of the guidance as one batch and the text
repeated for each frame, as its pipeline gives it; ours runs the halves one after the other.
"""

from typing import Any

import torch
from diffusers.models import UNetMotionModel
from models import model
from torch import nn
from turns import alternate

import animatediff_core as ad
from animatediff_core.checkpoints.export import motion_adapter


@torch.no_grad()
def compare_forwards(size: str, frames: int, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """(fastest, median, slowest) seconds of both sides, their medians' ratio, and the farthest
    that our optimised output is from our plain one."""
    width, tokens = (128, 32) if size == "bundled" else (768, 77)
    side = 32 if size == "full" else 16
    torch.manual_seed(1)
    x = torch.randn(1, 4, frames, side, side).to(dtype)
    texts = [torch.randn(1, tokens, width).to(dtype) for _ in range(2)]
    unet, motion = model(size, frames, dtype)
    adapter = nn.Module.to(motion_adapter(motion), dtype)
    theirs = UNetMotionModel.from_unet2d(unet, adapter).eval()
    theirs = nn.Module.to(theirs, dtype).to(memory_format=torch.channels_last)
    pair = torch.cat([x, x])
    states = torch.cat(texts).repeat_interleave(frames, 0)
    ours = ad.inflate(unet, motion)
    plain = ours(x, 500, texts[0])
    ad.optimize(ours)
    error = float((plain - ours(x, 500, texts[0])).abs().max())
    times = alternate(
        {
            "ours": lambda: [ours(x, 500, text) for text in texts],
            "diffusers": lambda: theirs(pair, 500, states),
        },
        rounds,
    )
    ratio = times["diffusers"][1] / times["ours"][1]
    return {**times, "ratio": ratio, "error": error}
