"""One guided forward of a UNet, ours against diffusers' UNetMotionModel on the same weights.

diffusers runs channels-last and SDPA, both halves of the guidance as one batch and the text
repeated for each frame, as its pipeline gives it; ours runs the halves one after the other.
Compiled, each side has torch.compile make its own ResNets and transformers.
"""

from typing import Any

import torch
from diffusers.models import UNetMotionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from models import model
from place import Place
from torch import Tensor, nn
from turns import alternate

import animatediff_core as ad
from animatediff_core.checkpoints.motion_adapter import motion_adapter
from animatediff_core.motion import AnimatedUNet
from animatediff_core.sampling.compiling import compile_model
from animatediff_core.speed import has_kernels

_THEIR_BLOCKS = (ResnetBlock2D, BasicTransformerBlock, AnimateDiffTransformer3D)


@torch.no_grad()
def compare_forwards(
    place: Place,
    size: str,
    frames: int,
    dtype: torch.dtype,
    rounds: int,
    *,
    compiled: bool = False,
) -> dict[str, Any]:
    """(fastest, median, slowest) seconds of both sides and their medians' ratio.

    `error`: in fp32 the farthest that our optimised output is from our plain one; in half precision
    how far each side is from itself in fp32, root mean squares by those of the output, ours first.
    """
    width, tokens = (128, 32) if size == "bundled" else (768, 77)
    side = 32 if size == "full" else 16
    torch.manual_seed(1)
    x = torch.randn(1, 4, frames, side, side).to(place.device)
    texts = [torch.randn(1, tokens, width).to(place.device) for _ in range(2)]
    unet, motion = model(size, frames)
    theirs = UNetMotionModel.from_unet2d(unet, motion_adapter(motion)).eval().to(place.device)
    unet, motion = unet.to(place.device), motion.to(place.device)
    theirs = nn.Module.to(theirs, memory_format=torch.channels_last)
    ours = ad.inflate(unet, motion)
    plain = ours(x, 500, texts[0])
    if dtype == torch.float32:
        error = float((plain - _fast(ours, compiled)(x, 500, texts[0])).abs().max())
        errors = {"error": (error,)}
    else:
        exact = theirs(x, 500, texts[0].repeat_interleave(frames, 0)).sample
        ours, theirs = (nn.Module.to(one, dtype) for one in (ours, theirs))
        x, texts = x.to(dtype), [text.to(dtype) for text in texts]
        near = _fast(ours, compiled)(x, 500, texts[0])
        if compiled:
            _compile(theirs)
        other = theirs(x, 500, texts[0].repeat_interleave(frames, 0)).sample
        errors = {"error": (_distance(near, plain), _distance(other, exact))}
    pair, states = torch.cat([x, x]), torch.cat(texts).repeat_interleave(frames, 0)
    times = alternate(
        place,
        {
            "ours": lambda: [ours(x, 500, text) for text in texts],
            "diffusers": lambda: theirs(pair, 500, states),
        },
        rounds,
    )
    return {**times, "ratio": times["diffusers"][1] / times["ours"][1], **errors}


def _fast(ours: AnimatedUNet, compiled: bool) -> AnimatedUNet:
    """As `generate` makes it, with and without --compile."""
    compiled = compiled and not has_kernels(ours.unet.device)
    ad.optimize(ours, fused=not compiled)
    if compiled:
        compile_model(ours)
    return ours


def _compile(theirs: nn.Module) -> None:
    """diffusers names no repeated blocks of this model, so those that we compile."""
    for module in theirs.modules():
        if type(module) in _THEIR_BLOCKS:
            module.compile(dynamic=False)


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).pow(2).mean().sqrt() / b.pow(2).mean().sqrt())
