"""Timing, memory and random models of the GPU benchmarks.

Without a GPU everything runs at a tiny size, to show that it does.
"""

import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
SIDE, FRAMES, TOKENS, WIDTH = (64, 16, 77, 768) if ON_GPU else (4, 2, 7, 16)
Row = tuple[str, dict[str, Any]]
Side = Callable[[], object]
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


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


def random_vae() -> Any:
    """SD1.5's VAE of random weights, where models run."""
    from diffusers.models import AutoencoderKL

    channels = (128, 256, 512, 512) if ON_GPU else (32, 32, 32, 32)
    with torch.device(DEVICE):
        vae = AutoencoderKL(
            block_out_channels=channels,
            layers_per_block=2,
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
    return vae.eval().requires_grad_(False)
