"""One training step, ours against diffusers' UNetMotionModel: the motion module over a frozen base.

Random models, small (64, 128, 256 channels) or of SD1.5's size with a v2 module, on one clip of
latents of 16 x 16 or 32 x 32, in turns; each step is forward, loss, backward and AdamW. Plain, or
with each side's own gradient checkpointing, with what its graph then keeps. Both sides train the
same parameters in memory, so that the full size fits.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from diffusers.models import UNetMotionModel
from models import random_model
from place import Place
from torch import Tensor, nn
from turns import alternate

import animatediff_core as ad
from animatediff_core.checkpoints.motion_adapter import motion_adapter
from animatediff_core.checkpoints.motion_names import site_name
from animatediff_core.training.checkpointing import counting_kept, recompute_blocks
from animatediff_core.training.stages.motion import motion_parameters

SIDES = {"small": 16, "full": 32}
"""Height and width of the latents."""


def compare_training(
    place: Place, size: str, frames: int, *, checkpointing: bool, rounds: int = 3
) -> dict[str, Any]:
    """(fastest, median, slowest) seconds of both sides, the ratio of the medians, the bytes that
    each graph keeps, and how far the losses of their first forwards are apart."""
    unet, motion = random_model(size, frames)
    theirs = UNetMotionModel.from_unet2d(unet, motion_adapter(motion))
    _share(theirs, {**dict(unet.named_parameters()), **dict(motion.named_parameters())})
    unet, motion, theirs = (one.to(place.device) for one in (unet, motion, theirs))
    animated = ad.inflate(unet, motion)
    learned = list(motion_parameters(animated).values())
    theirs.train()
    if checkpointing:
        theirs.enable_gradient_checkpointing()
        recompute_blocks(animated)
    predict: dict[str, Callable[..., Tensor]] = {
        "ours": animated,
        "diffusers": lambda x, time, text: (
            theirs(x, time, text.repeat_interleave(frames, 0)).sample
        ),
    }
    loss = partial(_loss, place.device, (1, 4, frames, SIDES[size], SIDES[size]))
    weights = list(theirs.parameters())
    firsts = [_first(weights, partial(loss, one)) for one in predict.values()]
    kept, losses = zip(*firsts, strict=True)
    optimizer = torch.optim.AdamW(learned, lr=1e-6, fused=True)
    sides = {name: partial(_step, optimizer, partial(loss, one)) for name, one in predict.items()}
    times = alternate(place, sides, rounds)
    return {
        **times, "ratio": times["diffusers"][1] / times["ours"][1],
        "kept": kept, "error": (abs(losses[0] - losses[1]),),
    }  # fmt: skip


def _share(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    """Give diffusers' model ours for its own, by their names."""
    for path, module in model.named_modules():
        for name in list(module._parameters):
            key = f"{path}.{name}".lstrip(".")
            if module._parameters[name] is not None:
                module._parameters[name] = parameters[site_name(key) or key]


def _loss(device: torch.device, shape: tuple[int, ...], predict: Callable[..., Tensor]) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x, noise = (torch.randn(shape, generator=generator).to(device) for _ in range(2))
    text, time = torch.randn(1, 77, 768, generator=generator), torch.tensor([500])
    return nn.functional.mse_loss(predict(x, time.to(device), text.to(device)), noise)


def _first(weights: Sequence[Tensor], loss: Callable[[], Tensor]) -> tuple[int, float]:
    """The bytes that a side keeps for its backward, and its loss."""
    with counting_kept(weights) as kept:
        value = loss()
    value.backward()  # type: ignore[no-untyped-call]
    for weight in weights:
        weight.grad = None
    return kept.num_bytes, float(value.detach())


def _step(optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> None:
    loss().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad()
