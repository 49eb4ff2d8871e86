"""One guided forward of a UNet, ours against diffusers' UNetMotionModel on the same weights.

diffusers runs channels-last and SDPA, both halves of the guidance as one batch and the text
repeated for each frame, as its pipeline gives it; ours runs the halves one after the other.
"""

from typing import Any

import torch
from diffusers.models import UNetMotionModel
from models import model
from torch import Tensor, nn
from turns import alternate

import animatediff_core as ad
from animatediff_core.checkpoints.export import motion_adapter


@torch.no_grad()
def compare_forwards(size: str, frames: int, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """(fastest, median, slowest) seconds of both sides and their medians' ratio.

    `error`: in fp32 the farthest that our optimised output is from our plain one; in bf16 how far
    each side is from itself in fp32, root mean squares by those of the output, ours first.
    """
    width, tokens = (128, 32) if size == "bundled" else (768, 77)
    side = 32 if size == "full" else 16
    torch.manual_seed(1)
    x = torch.randn(1, 4, frames, side, side)
    texts = [torch.randn(1, tokens, width) for _ in range(2)]
    unet, motion = model(size, frames)
    theirs = UNetMotionModel.from_unet2d(unet, motion_adapter(motion)).eval()
    theirs = nn.Module.to(theirs, memory_format=torch.channels_last)
    ours = ad.inflate(unet, motion)
    plain = ours(x, 500, texts[0])
    if dtype == torch.float32:
        error = float((plain - ad.optimize(ours)(x, 500, texts[0])).abs().max())
        errors = {"error": (error,)}
    else:
        exact = theirs(x, 500, texts[0].repeat_interleave(frames, 0)).sample
        ours, theirs = (nn.Module.to(one, dtype) for one in (ours, theirs))
        x, texts = x.to(dtype), [text.to(dtype) for text in texts]
        near = ad.optimize(ours)(x, 500, texts[0])
        other = theirs(x, 500, texts[0].repeat_interleave(frames, 0)).sample
        errors = {"error": (_distance(near, plain), _distance(other, exact))}
    pair, states = torch.cat([x, x]), torch.cat(texts).repeat_interleave(frames, 0)
    times = alternate(
        {
            "ours": lambda: [ours(x, 500, text) for text in texts],
            "diffusers": lambda: theirs(pair, 500, states),
        },
        rounds,
    )
    return {**times, "ratio": times["diffusers"][1] / times["ours"][1], **errors}


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).pow(2).mean().sqrt() / b.pow(2).mean().sqrt())
