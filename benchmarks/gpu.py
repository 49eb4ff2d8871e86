"""`make bench-gpu`: this program beside diffusers on a GPU, part by part, figures as they come.

Random weights of SD1.5 with a v2 module, 16 frames of 512 x 512 pixels, guidance, unless a row says
otherwise; wall time between synchronisations, medians, both sides in turns. A part that fails prints
why, and the next one runs. The rows are written to $OUT/gpu.json, or to build/gpu.json. Without a GPU
everything runs at a tiny size, to show that it does.
"""

import argparse
import copy
import gc
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

START = time.perf_counter()
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
HALF = torch.float16 if ON_GPU else torch.float32
SIZES = {"full": (320, 640, 1280, 1280), "tiny": (32, 64)}
SIZE = "full" if ON_GPU else "tiny"
SIDE, FRAMES, TOKENS, WIDTH = (64, 16, 77, 768) if ON_GPU else (4, 2, 7, 16)
Row = tuple[str, dict[str, Any]]
Side = Callable[[], object]
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def main() -> None:
    """Run the chosen parts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; or all")
    asked = parser.parse_args().parts or list(PARTS)
    if unknown := set(asked) - set(PARTS):
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    name = torch.cuda.get_device_name() if ON_GPU else "cpu"
    say(f"torch {torch.__version__}, {name}, imports {time.perf_counter() - START:.0f} s")
    found: dict[str, Any] = {"torch": torch.__version__, "device": name, "rows": {}}
    for part in asked:
        say(f"--- {part} ({time.perf_counter() - START:.0f} s)")
        try:
            for case, figures in PARTS[part]():
                found["rows"][f"{part}: {case}"] = figures
                say(f"{case:44} {shown(figures)}")
        except Exception:
            say(traceback.format_exc())
        gc.collect()
        if ON_GPU:
            torch.cuda.empty_cache()
        path = Path(os.environ.get("OUT", "build")) / "gpu.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=1))
    say(f"--- done ({time.perf_counter() - START:.0f} s)")


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def shown(figures: dict[str, Any]) -> str:
    return "  ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in figures.items()
    )


def clock() -> float:
    if ON_GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(sides: dict[str, Side], rounds: int = 5, warm: int = 3) -> dict[str, float]:
    """Milliseconds of each side, medians; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        for _ in range(warm):
            side()
    for _ in range(rounds):
        for name, side in sides.items():
            start = clock()
            side()
            times[name].append((clock() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def quick(side: Side, rounds: int = 10) -> float:
    """Milliseconds of a small piece of work, one of many in a row."""
    side(), side()
    start = clock()
    for _ in range(rounds):
        side()
    return (clock() - start) * 1e3 / rounds


def peak(side: Side) -> dict[str, float]:
    """GiB that a call takes beside what was held before it: of tensors, and of the device."""
    if not ON_GPU:
        side()
        return {}
    gc.collect()
    torch.cuda.empty_cache()
    held, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(3):  # plain, captured, replayed
        side()
    torch.cuda.synchronize()
    gib = 2.0**30
    return {
        "GiB": (torch.cuda.max_memory_allocated() - held) / gib,
        "GiB of the device": (torch.cuda.max_memory_reserved() - reserved) / gib,
    }


def distance(a: Tensor, b: Tensor) -> float:
    """Relative L2."""
    return float((a.double() - b.double()).norm() / b.double().norm())


# --- models


def parts(size: str = SIZE, dtype: torch.dtype = HALF) -> tuple[Any, Any]:
    """A UNet and a motion module of random weights, made where they run."""
    from models import random_parts

    with torch.device(DEVICE):
        layers, groups = (2, 32) if size == "full" else (1, 8)
        unet, motion = random_parts(SIZES[size], layers, 32, text=WIDTH)
    for part in (unet, motion):
        part.requires_grad_(False).to(dtype)
    return unet, motion


def diffusers_model(unet: Any, motion: Any) -> Any:
    """diffusers' model of the same weights, channels-last."""
    from diffusers.models import UNetMotionModel

    from animatediff_core.checkpoints.write import motion_adapter

    with torch.device(DEVICE):
        theirs = UNetMotionModel.from_unet2d(unet, motion_adapter(motion)).eval()
    theirs = theirs.requires_grad_(False).to(DEVICE, unet.dtype)
    return nn.Module.to(theirs, memory_format=torch.channels_last)


def inputs(
    side: int = SIDE, frames: int = FRAMES, dtype: torch.dtype = HALF, batch: int = 1
) -> Any:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 4, frames, side, side, generator=generator).expand(batch, -1, -1, -1, -1)
    texts = torch.randn(2, TOKENS, WIDTH, generator=generator)
    return x.to(DEVICE, dtype), texts.to(DEVICE, dtype)


def guided(model: Any, x: Tensor, texts: Tensor) -> Side:
    """Both halves of guidance, one after the other, as the loop calls them."""
    time = torch.tensor(500, device=DEVICE)
    return lambda: [model(x, time, text) for text in texts.split(1)]


def guided_together(model: Any, x: Tensor, texts: Tensor) -> Side:
    """Both halves as one batch."""
    time, pair = torch.tensor(500, device=DEVICE), torch.cat([x, x])
    return lambda: model(pair, time, texts)


def guided_diffusers(theirs: Any, x: Tensor, texts: Tensor) -> Side:
    """As its pipeline calls it."""
    time, pair = torch.tensor(500, device=DEVICE), torch.cat([x, x])
    states = texts.repeat_interleave(x.shape[2], 0)
    return lambda: theirs(pair, time, states, return_dict=False)


@contextmanager
def without_graphs(animated: Any) -> Iterator[None]:
    """Within it every call runs operation by operation."""
    fast = getattr(animated.__dict__.get("forward"), "__self__", None)
    graphs = getattr(fast, "graphs", None)
    if graphs is not None:
        fast.graphs = None
    try:
        yield
    finally:
        if graphs is not None:
            fast.graphs = graphs


# --- parts


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


def kernel_cases(
    dtype: torch.dtype, most: int
) -> Iterator[tuple[str, Callable[[], Tensor], Callable[[], Tensor]]]:
    from animatediff_core.speed import kernels

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=DEVICE).to(dtype)

    shapes = ((6, 35, 48, 16), (16, 1025, 320, 32), (4, 63, 1280, 32))
    for frames, pixels, channels, groups in shapes[: most if ON_GPU else 1]:
        rows = frames * pixels
        x, bias, other = draw(rows, channels), draw(frames, channels), draw(rows, channels)
        norm = nn.GroupNorm(groups, channels).to(DEVICE, dtype)
        layer = nn.LayerNorm(channels).to(DEVICE, dtype)
        for one in (norm, layer):
            one.weight.copy_(draw(channels)), one.bias.copy_(draw(channels))
        size = f"{rows} x {channels}"
        for clips in (frames, 2):
            yield f"group norm of {clips}, {size}", lambda clips=clips: kernels.group_norm(
                x, norm, clips, silu=True, bias=bias
            ), lambda clips=clips: F.silu(F.group_norm(
                (x.double() + bias.double().repeat_interleave(pixels, 0)).view(clips, -1, channels)
                .transpose(1, 2), groups, norm.weight.double(), norm.bias.double(), norm.eps,
            )).transpose(1, 2).reshape(rows, channels)  # fmt: skip
        places = draw(frames // 2, channels)
        yield f"layer norm, {size}", lambda: kernels.layer_norm(x, layer, places, pixels), lambda: (
            F.layer_norm(x.double(), (channels,), layer.weight.double(), layer.bias.double())
            + places.double().repeat_interleave(pixels, 0).repeat(2, 1)
        )  # fmt: skip
        yield f"add, {size}", lambda: kernels.add(x, bias[0], other, 0.3), lambda: (
            other.double() + 0.3 * (x.double() + bias[0].double())
        )  # fmt: skip
        yield f"gate, {size}", lambda: kernels.gate(x), lambda: (
            x[:, : channels // 2].double() * F.gelu(x[:, channels // 2 :].double())
        )  # fmt: skip
        qkv = draw(rows, 3 * channels)
        for count in {frames, 2}:

            def wanted(count: int = count) -> Tensor:
                heads = qkv.double().view(-1, count, pixels, 3, 8, channels // 8)
                query, key, value = heads.permute(3, 0, 2, 4, 1, 5)
                scores = query @ key.transpose(-1, -2) * (channels // 8) ** -0.5
                mixed = scores.softmax(-1) @ value
                return mixed.permute(0, 3, 1, 2, 4).reshape(rows, channels)

            yield f"attention over {count} frames, {size}", (
                lambda count=count: kernels.attend_frames(qkv, count, pixels, 8)
            ), wanted  # fmt: skip
        weight, out = draw(2 * channels, channels) / channels**0.5, draw(rows, 2 * channels)
        both = draw(2 * channels)
        yield f"product and add, {size}", lambda: kernels.product(
            x, weight, both, other=out, strength=0.5
        ), lambda: out.double() + 0.5 * F.linear(x.double(), weight.double(), both.double())  # fmt: skip

        def gated() -> Tensor:
            value, gate = F.linear(x.double(), weight.double(), both.double()).chunk(2, 1)
            return value * F.gelu(gate)

        yield f"product and gate, {size}", (
            lambda: kernels.product(x, weight, both, gated=True)
        ), gated  # fmt: skip


@torch.no_grad()
def pieces() -> Iterator[Row]:
    """The kernels beside what torch has for the same, at the sizes of one half of a forward."""
    from animatediff_core.speed import kernels

    levels = ((64, 320), (32, 640), (16, 1280)) if ON_GPU else ((4, 32),)
    for side, channels in levels:
        rows = FRAMES * side * side
        x, other = (torch.randn(rows, channels, device=DEVICE).to(HALF) for _ in range(2))
        wide = torch.randn(rows, 4 * channels, device=DEVICE).to(HALF)
        both = torch.randn(rows, 8 * channels, device=DEVICE).to(HALF)
        bias = torch.randn(8 * channels, device=DEVICE).to(HALF)
        up, square, down = (
            torch.randn(shape, device=DEVICE).to(HALF) / 20
            for shape in ((8 * channels, channels), (channels, channels), (channels, 4 * channels))
        )
        norm = nn.GroupNorm(8, channels).to(DEVICE, HALF)
        layer = nn.LayerNorm(channels).to(DEVICE, HALF)
        images = x.view(FRAMES, side, side, channels).permute(0, 3, 1, 2)
        at = f"{side} x {side}, {channels}"
        yield f"group norm, silu, {at}", {
            "ours": quick(lambda: kernels.group_norm(x, norm, FRAMES, silu=True)),
            "torch": quick(lambda: F.silu(norm(images))),
        }  # fmt: skip
        yield f"layer norm, {at}", {
            "ours": quick(lambda: kernels.layer_norm(x, layer)), "torch": quick(lambda: layer(x))
        }  # fmt: skip
        yield f"gated product, {at}", {
            "fused": quick(lambda: kernels.product(x, up, bias, gated=True)),
            "apart": quick(lambda: kernels.gate(F.linear(x, up, bias))),
            "product alone": quick(lambda: F.linear(x, up, bias)),
            "gate alone": quick(lambda: kernels.gate(both)),
        }  # fmt: skip
        for name, given, weight in (("square", x, square), ("down", wide, down)):
            yield f"product and add, {name}, {at}", {
                "fused": quick(lambda: kernels.product(given, weight, bias[:channels], other=other)),
                "apart": quick(lambda: kernels.add(F.linear(given, weight), bias[:channels], other)),
                "in place": quick(lambda: other.addmm_(given, weight.t(), beta=0.5)),
                "product alone": quick(lambda: F.linear(given, weight)),
            }  # fmt: skip
        qkv = torch.randn(rows, 3 * channels, device=DEVICE).to(HALF)
        apart = qkv.view(FRAMES, side * side, 3, 8, -1).permute(2, 3, 1, 0, 4)
        query, key, value = qkv.view(FRAMES, side * side, 3, 8, -1).permute(2, 0, 3, 1, 4)
        yield f"attention over frames, {at}", {
            "ours": quick(lambda: kernels.attend_frames(qkv, FRAMES, side * side, 8)),
            "torch, by strides": quick(lambda: F.scaled_dot_product_attention(*apart.transpose(1, 2))),
        }  # fmt: skip
        yield f"attention over pixels, {at}", attention_backends(query, key, value)


def attention_backends(query: Tensor, key: Tensor, value: Tensor) -> dict[str, Any]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    found: dict[str, Any] = {}
    for name in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION"):
        try:
            with sdpa_kernel(getattr(SDPBackend, name)):
                found[name] = quick(lambda: F.scaled_dot_product_attention(query, key, value))
        except RuntimeError as error:
            found[name] = str(error)[:30]
    return found


@torch.no_grad()
def forward() -> Iterator[Row]:
    """One guided forward, not compiled: full size and 256 x 256."""
    import animatediff_core as ad

    unet, motion = parts()
    theirs = diffusers_model(unet, motion)
    animated = ad.optimize(ad.inflate(unet, motion))
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
    for event in events[:40]:
        yield event.key[:90], {"ms": event.self_device_time_total / 1e3, "calls": event.count}


PARTS: dict[str, Callable[[], Iterator[Row]]] = {
    "correct": correct,
    "forward": forward,
    "pieces": pieces,
    "exact": exact,
}

if __name__ == "__main__":
    main()
