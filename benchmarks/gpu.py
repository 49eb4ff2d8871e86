"""`make bench-gpu`: this program beside diffusers on a GPU, part by part, figures as they come.

Random weights of SD1.5 with a v2 module, 16 frames of 512 x 512 pixels, guidance, unless a row says
otherwise; wall time between synchronisations, medians, both sides in turns. If a part fails, its
error is printed and the next one runs. The rows are written to $OUT/gpu.json, or to build/gpu.json.
Without a GPU everything runs at a tiny size, to show that it does.
"""

import argparse
import copy
import gc
import json
import os
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

START = time.perf_counter()
sys.path.insert(0, str(Path(__file__).parent.parent))
if not Path("/dev/nvidiactl").exists():  # read when torch is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
HALF = torch.float16 if ON_GPU else torch.float32
SIZES = {"full": (320, 640, 1280, 1280), "tiny": (32, 64)}
SIZE = "full" if ON_GPU else "tiny"
LIMITS = {"compiled": 100, "memory": 80}
"""Seconds of a part; 60 of others."""
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
    signal.signal(signal.SIGALRM, stop)
    say(f"torch {torch.__version__}, {name}, imports {time.perf_counter() - START:.0f} s")
    found: dict[str, Any] = {"torch": torch.__version__, "device": name, "rows": {}}
    for part in asked:
        say(f"--- {part} ({time.perf_counter() - START:.0f} s)")
        signal.alarm(LIMITS.get(part, 60) if ON_GPU else 0)
        try:
            for case, figures in PARTS[part]():
                found["rows"][f"{part}: {case}"] = figures
                say(f"{case:44} {shown(figures)}")
        except Exception:
            say(traceback.format_exc())
        signal.alarm(0)
        gc.collect()
        if ON_GPU:
            torch.cuda.empty_cache()
        path = Path(os.environ.get("OUT", "build")) / "gpu.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=1))
    say(f"--- done ({time.perf_counter() - START:.0f} s)")


def stop(number: int, frame: object) -> None:
    raise TimeoutError("this part took too long")


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
    rounds, warm = (rounds, warm) if ON_GPU else (1, 1)
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


def diffusers_model(
    unet: Any, motion: Any, layout: torch.memory_format = torch.channels_last
) -> Any:
    """diffusers' model of the same weights."""
    from diffusers.models import UNetMotionModel

    from animatediff_core.checkpoints.motion_adapter import motion_adapter

    with torch.device(DEVICE):
        theirs = UNetMotionModel.from_unet2d(unet, motion_adapter(motion)).eval()
    theirs = theirs.requires_grad_(False).to(DEVICE, unet.dtype)
    return nn.Module.to(theirs, memory_format=layout)


def inputs(
    side: int = SIDE, frames: int = FRAMES, dtype: torch.dtype = HALF, batch: int = 1
) -> Any:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 4, frames, side, side, generator=generator).expand(batch, -1, -1, -1, -1)
    texts = torch.randn(2, TOKENS, WIDTH, generator=generator)
    return x.to(DEVICE, dtype), texts.to(DEVICE, dtype)


def guided(model: Any, x: Tensor, texts: Tensor) -> Callable[[], list[Tensor]]:
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


@torch.no_grad()
def clip() -> Iterator[Row]:
    """From loaded weights and embedded prompts to frames: 25 steps and decoding."""
    from diffusers import AnimateDiffPipeline, DDIMScheduler
    from diffusers.models import AutoencoderKL

    import animatediff_core as ad
    from animatediff_core.diffusion.decoding import decode
    from animatediff_core.speed import optimize_vae

    steps = 25 if ON_GPU else 2
    unet, motion = parts()
    levels = (128, 256, 512, 512) if ON_GPU else (32, 32, 32, 32)
    with torch.device(DEVICE):
        vae = AutoencoderKL(
            block_out_channels=levels, layers_per_block=2, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        ).eval().requires_grad_(False)  # fmt: skip
    their_vae = copy.deepcopy(vae).to(HALF)
    theirs = diffusers_model(unet, motion)
    settings = {"beta_schedule": "linear", "clip_sample": False, "timestep_spacing": "leading"}
    pipe = AnimateDiffPipeline(
        vae=nn.Module.to(their_vae, memory_format=torch.channels_last), text_encoder=None,
        tokenizer=None, unet=theirs, motion_adapter=None, scheduler=DDIMScheduler(**settings),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    x, texts = inputs()
    animated, size = ad.optimize(ad.inflate(unet, motion)), SIDE * 8
    optimize_vae(vae)
    torch.backends.cudnn.allow_tf32 = True  # as `generate` sets it beside a model in fp16

    def ours() -> object:
        scheduler = ad.make_scheduler("ddim", motion.config)
        latents = ad.denoise(animated, scheduler, x, texts[:1], texts[1:], steps=steps)
        return decode(vae, latents)

    def other() -> object:
        return pipe(
            prompt_embeds=texts[:1], negative_prompt_embeds=texts[1:], latents=x.clone(),
            num_frames=x.shape[2], height=size, width=size, num_inference_steps=steps,
            guidance_scale=7.5, output_type="np",
        )  # fmt: skip

    times = timed({"ours": ours, "diffusers": other}, 2, 1)
    yield f"clip, {steps} steps, ms", {**times, "ratio": times["diffusers"] / times["ours"]}
    latents = x.float()
    yield "decoding alone, ms", timed({"ours": lambda: decode(vae, latents)}, 3, 1)
    torch.backends.cudnn.allow_tf32 = False


def train() -> Iterator[Row]:
    """A training step of the motion module, 16 frames of 256 x 256, bf16 autocast."""
    for checkpointing in (False, True):
        sides = training_sides(checkpointing)
        for side in sides.values():
            side()  # the optimizer's state is there
        peaks = {name: peak(side).get("GiB", 0.0) for name, side in sides.items()}
        times = timed(sides, 5, 1)
        kind = "step, checkpointing" if checkpointing else "step"
        yield f"{kind}, ms", {**times, "ratio": times["diffusers"] / times["ours"]}
        yield f"{kind}, peak, GiB", peaks
        del sides
        gc.collect()


def training_sides(checkpointing: bool) -> dict[str, Side]:
    import animatediff_core as ad
    from animatediff_core.training.checkpointing import recompute_blocks

    unet, motion = parts(dtype=torch.float32)
    theirs = diffusers_model(unet, motion, torch.contiguous_format)
    theirs.freeze_unet2d_params()
    animated = ad.inflate(unet, motion)
    motion.requires_grad_(True)
    if checkpointing:
        theirs.enable_gradient_checkpointing()
        recompute_blocks(animated)
    theirs.train()
    x, texts = inputs(SIDE // 2, dtype=torch.float32)
    states = texts[:1].repeat_interleave(x.shape[2], 0)
    moment = torch.tensor([500], device=DEVICE)
    calls = {
        "diffusers": lambda: theirs(x, moment, states).sample,
        "ours": lambda: animated(x, moment, texts[:1]),
    }
    learned = [p for p in theirs.parameters() if p.requires_grad], list(motion.parameters())
    return {
        name: partial(training_step, call, torch.optim.AdamW(some, lr=1e-6, fused=True))
        for (name, call), some in zip(calls.items(), learned, strict=True)
    }


def training_step(call: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> None:
    with torch.autocast(DEVICE.type, torch.bfloat16):
        loss = call().float().square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def memory() -> Iterator[Row]:
    """A clip of 2 steps on cards with less memory: the offload level, and its seconds."""
    from diffusers.models import AutoencoderKL

    import animatediff_core as ad
    from animatediff_core.checkpoints.base_model import BaseModel
    from animatediff_core.diffusion.decoding import decode
    from animatediff_core.sampling.placement import PlacedModel, Placement

    unet, motion = (part.cpu() for part in parts())
    levels = (128, 256, 512, 512) if ON_GPU else (32, 32, 32, 32)
    vae = AutoencoderKL(
        block_out_channels=levels, layers_per_block=2, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).eval().requires_grad_(False)  # fmt: skip
    base = BaseModel(unet, vae, [], [], {}, "SD1.5", "random")
    x, texts = inputs()
    placed = PlacedModel(base, motion, Placement(DEVICE, HALF))
    for limit in (80, 8, 6, 4, 3):
        if ON_GPU:
            gc.collect()
            torch.cuda.empty_cache()
            whole = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit * 2**30 / whole))
            torch.cuda.reset_peak_memory_stats()
        for _ in range(6):
            start = clock()
            try:
                scheduler = ad.make_scheduler("ddim", motion.config)
                latents = ad.denoise(placed.animated, scheduler, x, texts[:1], texts[1:], steps=2)
                decode(vae, latents, chunk=placed.placement.memory.decode_chunk)
            except torch.OutOfMemoryError:
                if not placed.use_less_memory():
                    yield f"{limit} GiB", {"fits": False}
                    return
            else:
                break
        if ON_GPU:
            yield f"{limit} GiB", {
                "level": str(placed.placement.memory), "s": clock() - start,
                "peak": torch.cuda.max_memory_reserved() / 2**30,
            }  # fmt: skip
        else:
            yield f"{limit} GiB", {"level": str(placed.placement.memory)}
            return


PARTS: dict[str, Callable[[], Iterator[Row]]] = {
    "correct": correct,
    "forward": forward,
    "tiny": tiny,
    "clip": clip,
    "train": train,
    "memory": memory,
    "compiled": compiled,
    "exact": exact,
}

if __name__ == "__main__":
    main()
