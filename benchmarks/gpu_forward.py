"""The GPU benchmarks of a guided forward: plain, compiled, and of the bundled model."""

from collections.abc import Iterator
from typing import Any

import torch
from gpu_sides import (
    DEVICE,
    HALF,
    ON_GPU,
    SIDE,
    Row,
    Side,
    clock,
    diffusers_model,
    distance,
    guided,
    guided_diffusers,
    guided_together,
    inputs,
    parts,
    peak,
    timed,
    without_graphs,
)


@torch.no_grad()
def forward() -> Iterator[Row]:
    """One guided forward, not compiled: full size and 256 x 256."""
    import animatediff_core as ad

    unet, motion = parts()
    theirs = diffusers_model(unet, motion)
    animated, given = ad.inflate(unet, motion), inputs()
    plain = guided(animated, *given)()[0]
    yield "distance from the plain path", {
        "error": distance(guided(ad.optimize(animated), *given)()[0], plain)
    }  # fmt: skip
    for side in (SIDE, SIDE // 2):
        x, texts = inputs(side)
        sides = {
            "diffusers": guided_diffusers(theirs, x, texts),
            "ours": guided(animated, x, texts),
            "together": guided_together(animated, x, texts),
        }
        peaks = {f"peak, {name}, {side * 8}": peak(one) for name, one in sides.items()}
        times = timed(sides)
        with without_graphs(animated):
            times["ours, no graph"] = timed({"ours": sides["ours"]}, 3, 1)["ours"]
        yield f"guided forward, {side * 8} pixels, ms", {
            **times, "ratio": times["diffusers"] / times["ours"]
        }  # fmt: skip
        yield from peaks.items()
    del theirs
    yield from profiled(guided(animated, *inputs()), animated)


def profiled(side: Side, animated: Any) -> Iterator[Row]:
    """The device's time by kernel."""
    from torch.profiler import ProfilerActivity, profile

    if not ON_GPU:
        return
    with without_graphs(animated):
        side()
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
            side()
            torch.cuda.synchronize()
    events = [e for e in found.key_averages() if str(e.device_type).endswith("CUDA")]
    events.sort(key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in events)
    yield "device time of all kernels", {"ms": total / 1e3, "calls": sum(e.count for e in events)}
    for event in events[:25]:
        yield event.key[:90], {"ms": event.self_device_time_total / 1e3, "calls": event.count}


@torch.no_grad()
def compiled() -> Iterator[Row]:
    """diffusers with its blocks compiled, ours by its kernels, which no compiler is needed for."""
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D

    import animatediff_core as ad

    unet, motion = parts()
    theirs = diffusers_model(unet, motion)
    for module in theirs.modules():
        if type(module) in (ResnetBlock2D, BasicTransformerBlock, AnimateDiffTransformer3D):
            module.compile(dynamic=False, backend="inductor" if ON_GPU else "eager")
    animated, (x, texts) = ad.optimize(ad.inflate(unet, motion)), inputs()
    sides = {
        "diffusers, compiled": guided_diffusers(theirs, x, texts),
        "ours": guided(animated, x, texts),
    }
    seconds = {}
    for name, side in sides.items():
        start = clock()
        side()
        seconds[name] = clock() - start
    yield "first call, s", seconds
    times = timed(sides)
    yield "guided forward, ms", {**times, "ratio": times["diffusers, compiled"] / times["ours"]}


@torch.no_grad()
def tiny() -> Iterator[Row]:
    """The bundled model: a guided forward, and a whole clip from loaded weights to a GIF."""
    from models import model

    import animatediff_core as ad

    with torch.device("cpu"):
        unet, motion = model("bundled", 16)
    unet, motion = unet.to(DEVICE, HALF), motion.to(DEVICE, HALF)
    theirs = diffusers_model(unet, motion)
    animated = ad.optimize(ad.inflate(unet, motion))
    x, texts = torch.randn(1, 4, 16, 16, 16), torch.randn(2, 32, 128)
    x = x if ON_GPU else x[:, :, :2, :4, :4]
    given = x.to(DEVICE, HALF), texts.to(DEVICE, HALF)
    sides = {
        "diffusers": guided_diffusers(theirs, *given),
        "ours": guided_together(animated, *given),
        "ours, one by one": guided(animated, *given),
    }
    times = timed(sides, 9 if ON_GPU else 1)
    yield "guided forward, bundled, ms", {**times, "ratio": times["diffusers"] / times["ours"]}
    from place import place_of
    from whole import compare_clips

    row = compare_clips(
        place_of(None), "bundled", steps=16 if ON_GPU else 2, rounds=3 if ON_GPU else 1
    )
    yield row["case"], {
        "ours": row["ours"][1], "diffusers": row["diffusers"][1], "ratio": row["ratio"]
    }  # fmt: skip
