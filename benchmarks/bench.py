"""One guided forward of a UNet, ours against diffusers' UNetMotionModel on the same weights.

Both sides are warmed up and take turns in one process and one thread; what counts is the thread's
own CPU time, since other work on the machine makes wall times lie. diffusers runs channels-last and
SDPA, both halves of the guidance as one batch and the text repeated for each frame, as its pipeline
gives it; ours runs the halves one after the other. Medians, fastest and slowest runs and the ratio
are printed as a table and written to build/bench.json. `--full` adds the full size of SD1.5 and v2
(about 16 GB of memory) and more rounds.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.models import UNet2DConditionModel, UNetMotionModel
from torch import nn

import animatediff_core as ad
from animatediff_core.checkpoints.export import motion_adapter
from animatediff_core.motion import VERSIONS, MotionConfig, MotionModule
from animatediff_core.runs.model import Parts, find, load

RESULTS = Path("build") / "bench.json"
SMALL = (64, 128, 256)


def main() -> None:
    """Run the cases and print each as it is done."""
    full = "--full" in sys.argv
    torch.set_num_threads(1)
    rows = []
    cases: list[tuple[str, str, int, torch.dtype]] = [
        ("forward", "bundled", 16, torch.float32),
        ("forward", "bundled", 16, torch.bfloat16),
        ("forward", "small", 16, torch.float32),
        ("forward", "small", 16, torch.bfloat16),
        *(("growth", "small", frames, torch.float32) for frames in (32, 64, 128)),
    ]
    if full:
        cases += [("forward", "full", 4, kind) for kind in (torch.float32, torch.bfloat16)]
    sys.stdout.write(f"{'case':34} {'ours s':>9} {'diffusers s':>12} {'ratio':>6} {'error':>9}\n")
    for name, size, frames, dtype in cases:
        row = compare(size, frames, dtype, rounds=7 if full else 3)
        kind = str(dtype).removeprefix("torch.")
        row = {"case": f"{name}, {size}, {frames} frames, {kind}", **row}
        rows.append(row)
        sys.stdout.write(
            f"{row['case']:34} {row['ours'][1]:9.3f} {row['diffusers'][1]:12.3f} "
            f"{row['ratio']:6.2f} {row['error']:9.1e}\n"
        )
        sys.stdout.flush()
    rows += training_rows()
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1))


def training_rows() -> list[dict[str, Any]]:
    """A training step without and with gradient checkpointing, each printed as it is done."""
    from train import compare_training  # which takes its model and its turns from here

    rows = []
    for checkpointing in (False, True):
        row = compare_training(checkpointing=checkpointing)
        row = {"case": f"training step{', checkpointing' * checkpointing}, small, 16 frames", **row}
        rows.append(row)
        ours, theirs = (kept / 2**20 for kept in row["kept"])
        sys.stdout.write(
            f"{row['case']:44} {row['ours'][1]:9.3f} {row['diffusers'][1]:12.3f} "
            f"{row['ratio']:6.2f} {row['error']:9.1e}  kept {ours:.0f} / {theirs:.0f} MiB\n"
        )
    return rows


@torch.no_grad()
def compare(size: str, frames: int, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """(fastest, median, slowest) seconds of both sides, their medians' ratio, and the farthest
    that our optimised output is from our plain one."""
    width, tokens = (128, 32) if size == "bundled" else (768, 77)
    side = 32 if size == "full" else 16
    torch.manual_seed(1)
    x = torch.randn(1, 4, frames, side, side).to(dtype)
    texts = [torch.randn(1, tokens, width).to(dtype) for _ in range(2)]
    unet, motion = _model(size, frames, dtype)
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


def alternate(
    sides: dict[str, Callable[[], object]], rounds: int
) -> dict[str, tuple[float, float, float]]:
    """Fastest, median and slowest CPU seconds of each side, which take turns."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side()
    for _ in range(rounds):
        for name, side in sides.items():
            start = time.thread_time()
            side()
            times[name].append(time.thread_time() - start)
    return {name: (min(v), statistics.median(v), max(v)) for name, v in times.items()}


def _model(size: str, frames: int, dtype: torch.dtype) -> tuple[UNet2DConditionModel, MotionModule]:
    """The bundled model, or random weights of a size."""
    if size == "bundled":
        base, motion = load(find(Parts(base="bundled:tiny"), offline=True), offline=True)
        unet = base.unet
    else:
        unet, motion = random_model(size, frames)
    unet, motion = (nn.Module.to(part, dtype).requires_grad_(False) for part in (unet, motion))
    return unet, motion


def random_model(size: str, frames: int) -> tuple[UNet2DConditionModel, MotionModule]:
    channels = SMALL if size == "small" else VERSIONS["v2"].block_out_channels
    layers, most = (1, max(32, frames)) if size == "small" else (2, 32)
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D",) * (len(channels) - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (len(channels) - 1),
        layers_per_block=layers,
        cross_attention_dim=768,
        attention_head_dim=8,
    ).eval()
    motion = MotionModule(
        MotionConfig(
            block_out_channels=channels, layers_per_block=layers, max_frames=most,
            mid_block=True, version="v2",
        )
    ).eval()  # fmt: skip
    for name, parameter in motion.named_parameters():
        if "proj_out" in name:
            nn.init.normal_(parameter, std=0.05)
    return unet, motion


if __name__ == "__main__":
    main()
