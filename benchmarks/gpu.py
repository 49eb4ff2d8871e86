"""`make bench-gpu`: this program beside diffusers on a GPU, part by part, figures as they come.

Random weights of SD1.5 with a v2 module, 16 frames of 512 x 512 pixels, guidance, unless a row says
otherwise; wall time between synchronisations, medians, both sides in turns. If a part fails, its
error is printed and the next one runs. The rows are written to $OUT/gpu.json, or to build/gpu.json.
Without a GPU everything runs at a tiny size, to show that it does.
"""

import argparse
import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gpu_sides import ON_GPU, START, Row  # isort: skip  # it sets what torch reads when it is imported
import torch
from gpu_clips import clip, memory, train
from gpu_forward import compiled, forward, tiny
from gpu_kernels import correct, exact

LIMITS = {"compiled": 100, "memory": 80}
"""Seconds of a part; 60 of others."""
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


if __name__ == "__main__":
    main()
