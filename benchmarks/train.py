"""One training step, ours against diffusers' UNetMotionModel: the motion module over a frozen base.

The random small model (64, 128, 256 channels) on one clip of 16 frames of 16 x 16 latents, one
thread, in turns, by the thread's own CPU time; each step is forward, loss, backward and AdamW. Once
plain, and once with each side's own gradient checkpointing, with what its graph then keeps.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models import UNetMotionModel
from diffusers.schedulers import DDPMScheduler
from models import random_model
from place import Place
from torch import Tensor, nn
from turns import alternate

import animatediff_core as ad
from animatediff_core.checkpoints.export import motion_adapter
from animatediff_core.speed.checkpointing import counting_kept, recompute_blocks
from animatediff_core.speed.training import quicken_training
from animatediff_core.training.stages import motion_trainee

FRAMES, SIDE = 16, 16


def compare_training(place: Place, *, checkpointing: bool, rounds: int = 3) -> dict[str, Any]:
    """(fastest, median, slowest) seconds of both sides, the ratio of the medians, the bytes that
    each graph keeps, and how far the losses of their first steps are apart."""
    unet, motion = random_model("small", FRAMES)
    theirs = UNetMotionModel.from_unet2d(unet, motion_adapter(motion)).to(place.device)
    unet, motion = unet.to(place.device), motion.to(place.device)
    theirs.requires_grad_(False).train()
    learned = [p for name, p in theirs.named_parameters() if "motion_modules" in name]
    for parameter in learned:
        parameter.requires_grad_(True)
    animated = ad.inflate(unet, motion)
    trainee = motion_trainee(animated, DDPMScheduler())
    quicken_training(animated)
    if checkpointing:
        theirs.enable_gradient_checkpointing()
        recompute_blocks(animated)
    ours, our_kept, our_loss = _step(animated, list(trainee.parameters.values()), animated)
    other, their_kept, their_loss = _step(
        theirs,
        learned,
        lambda x, time, text: theirs(x, time, text.repeat_interleave(FRAMES, 0)).sample,
    )
    times = alternate(place, {"ours": ours, "diffusers": other}, rounds)
    return {
        **times, "ratio": times["diffusers"][1] / times["ours"][1],
        "kept": (our_kept, their_kept), "error": (abs(our_loss - their_loss),),
    }  # fmt: skip


def _step(
    model: nn.Module, learned: list[nn.Parameter], predict: Callable[..., Tensor]
) -> tuple[Callable[[], float], int, float]:
    """One step of a model as a function, the bytes that it keeps, and its first loss."""
    generator = torch.Generator().manual_seed(1)
    x, noise = (torch.randn(1, 4, FRAMES, SIDE, SIDE, generator=generator) for _ in range(2))
    text, time = torch.randn(1, 77, 768, generator=generator), torch.tensor([500])
    device = next(model.parameters()).device
    x, noise, text, time = (one.to(device) for one in (x, noise, text, time))
    optimizer = torch.optim.AdamW(learned, lr=1e-6, fused=True)

    def step() -> float:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(predict(x, time, text), noise)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return float(loss.detach())

    with counting_kept(model.parameters()) as kept:
        first = step()
    return step, kept.num_bytes, first
