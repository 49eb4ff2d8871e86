"""One guided forward of the bundled model, ours against diffusers' UNetMotionModel, in one run.

Both sides have the same weights and take turns; medians and their ratio are printed as JSON lines
and a table. Loading and start-up are timed too, so that a slower start is seen.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from diffusers.models import UNetMotionModel

from animatediff_core import inflate
from animatediff_core.checkpoints.export import motion_adapter
from animatediff_core.runs.model import Parts, find, load

ROUNDS = 7


def main() -> None:
    """Print the table."""
    base, motion = load(find(Parts(base="bundled:tiny"), offline=True), offline=True)
    peer = UNetMotionModel.from_unet2d(base.unet, motion_adapter(motion)).eval()
    animated = inflate(base.unet, motion)
    x, text = torch.randn(2, 4, 16, 16, 16), torch.randn(2, 32, 128)
    sides: dict[str, Callable[[], object]] = {
        "ours": lambda: animated(x, 500, text),
        "diffusers": lambda: peer(x, 500, text.repeat_interleave(16, 0)),
    }
    times = {name: [] for name in sides}  # type: dict[str, list[float]]
    with torch.no_grad():
        for side in sides.values():
            side()
        for _ in range(ROUNDS):
            for name, side in sides.items():
                start = time.perf_counter()
                side()
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio = medians["diffusers"] / medians["ours"]
    help_time = _timed([sys.executable, "-m", "cli.app", "--help"])
    lines = [
        ("forward, 2 x 16 frames, ours", medians["ours"]),
        ("forward, 2 x 16 frames, diffusers", medians["diffusers"]),
        ("--help from the shell", help_time),
    ]
    for name, seconds in lines:
        sys.stdout.write(f"{name:40} {seconds:8.3f} s\n")
    sys.stdout.write(f"{'diffusers / ours':40} {ratio:8.2f}\n")
    sys.stdout.write(json.dumps({"ratio": ratio, "times": times}) + "\n")


def _timed(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
