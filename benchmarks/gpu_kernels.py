"""The GPU benchmarks that check values: kernels and whole models."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from gpu_sides import (
    DEVICE,
    FRAMES,
    HALF,
    ON_GPU,
    SIDE,
    Row,
    Side,
    distance,
    inputs,
    parts,
    without_graphs,
)
from torch import Tensor, nn


def correct() -> Iterator[Row]:
    """Each kernel against torch in fp64, then whole models against themselves in fp32."""
    yield from held_against(HALF, 3)


def exact() -> Iterator[Row]:
    """The same in fp32 and bf16."""
    yield from held_against(torch.float32, 1)
    if ON_GPU:
        yield from held_against(torch.bfloat16, 2)


@torch.no_grad()
def held_against(dtype: torch.dtype, shapes: int) -> Iterator[Row]:
    import animatediff_core as ad

    for name, got, wanted in kernel_cases(dtype, shapes):
        error = distance(got(), wanted())
        limit = 1e-5 if dtype == torch.float32 else 1e-3 if dtype == torch.float16 else 8e-3
        yield f"{name}, {named(dtype)}", {"error": error, "ok": error < limit}
    whole = parts(dtype=torch.float32)
    for side, frames in ((SIDE // 4, FRAMES), (SIDE // 4 + 1, 7 if ON_GPU else 3)):
        unet, motion = copy.deepcopy(whole)
        x, texts = inputs(side, frames, torch.float32)
        wanted = ad.inflate(unet, motion)(x, 500, texts[:1])
        unet, motion = (part.to(dtype) for part in copy.deepcopy(whole))
        animated = ad.inflate(unet, motion)
        given = x.to(dtype), torch.tensor(500, device=DEVICE), texts[:1].to(dtype)
        plain = animated(*given)
        ad.optimize(animated)
        first = animated(*given)
        again = [animated(*given) for _ in range(3)]  # captured, replayed
        other = animated(given[0], given[1], texts[1:].to(dtype))
        with without_graphs(animated):
            eager = animated(given[0], given[1], texts[1:].to(dtype))
        yield f"model, {frames} frames of {side * 8}, {named(dtype)}", {
            "plain": distance(plain, wanted), "ours": distance(first, wanted),
            "graph is the same": all(torch.equal(first, one) for one in again),
            "of another text": distance(other, eager),
        }  # fmt: skip


def named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def kernel_cases(dtype: torch.dtype, most: int) -> Iterator[tuple[str, Side, Side]]:
    """Each kernel, and the same of plain_ops in fp64."""
    from animatediff_core.speed import kernels, plain_ops

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=DEVICE).to(dtype)

    shapes = ((6, 5, 7, 48, 16), (16, 41, 25, 320, 32), (4, 9, 7, 1280, 32))
    for frames, height, width, channels, groups in shapes[: most if ON_GPU else 1]:
        rows, pixels = frames * height * width, height * width
        x = draw(frames, height, width, channels).permute(0, 3, 1, 2)
        norm = nn.GroupNorm(groups, channels).to(DEVICE, dtype)
        layer = nn.LayerNorm(channels).to(DEVICE, dtype)
        linear = nn.Linear(channels, 2 * channels).to(DEVICE, dtype)
        for one in (norm, layer):
            one.weight.copy_(draw(channels))
            one.bias.copy_(draw(channels))
        wide, other, qkv = draw(rows, channels), draw(rows, channels), draw(rows, 3 * channels)
        cases: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
            "group norm": ("group_norm", (x, norm), {"silu": True, "bias": draw(frames, channels)}),
            "group norm, one bias": ("group_norm", (x, norm), {"bias": draw(1, channels)}),
            "layer norm": ("layer_norm", (wide, layer, draw(frames // 2, channels), pixels), {}),
            "gate": ("gate", (wide,), {}),
            "add": ("add", (wide, draw(channels), other), {}),
            "linear and add": ("linear_add", (linear, wide, draw(rows, 2 * channels), 0.5), {}),
            "attention over frames": ("attend_frames", (qkv, frames, pixels, 8), {}),
            "attention over 2 frames": ("attend_frames", (qkv, 2, pixels, 8), {}),
        }
        for name, (function, given, named_) in cases.items():
            yield (
                f"{name}, {rows} x {channels}",
                partial(getattr(kernels, function), *given, **named_),
                partial(in_fp64, getattr(plain_ops, function), given, named_),
            )


def in_fp64(function: Callable[..., Tensor], given: Any, named_: dict[str, Any]) -> Tensor:
    def wide(one: Any) -> Any:
        if isinstance(one, nn.Module):
            return copy.deepcopy(one).double()
        return one.double() if isinstance(one, Tensor) else one

    return function(*map(wide, given), **{key: wide(one) for key, one in named_.items()})
