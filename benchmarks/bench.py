"""`make bench`: this program beside diffusers, as one table and as build/bench.json.

Both sides take turns. Inside one process they are warmed up and run on one thread, and what counts
is the thread's own CPU time; loads and whole commands are processes of their own, on one thread,
and what counts is their user and system time. Other work on the machine makes wall times lie.
Medians and the ratio diffusers/ours are printed, fastest and slowest runs are in the file.
The full size, SD1.5 and v2 of random weights, takes about 16 GB of memory; `--full` measures it at
16 frames instead of 4, loads it and makes a clip with it (6 GB in build/), and takes more rounds;
names (forward, train, load, whole, fast) choose parts. The other side of `fast` is our own exact
clip.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from fast import compare_levels
from forward import compare_forwards
from load import compare_loading
from train import compare_training
from whole import compare_clips, compare_commands

RESULTS = Path("build") / "bench.json"
PARTS = ("load", "whole", "fast", "train", "forward")


def main() -> None:
    """Run the chosen parts and print each row as it is there."""
    full = "--full" in sys.argv
    chosen = [part for part in PARTS if part in sys.argv] or list(PARTS)
    torch.set_num_threads(1)
    rows = []
    sys.stdout.write(f"{'case':58} {'ours':>9} {'other':>10}    ratio     error\n")
    for part in chosen:
        for row in _rows(part, full):
            rows.append(row)
            error = " / ".join(f"{one:.1e}" for one in row.get("error", ()))
            kept = " / ".join(f"{size / 2**20:.0f}" for size in row.get("kept", ()))
            more = f"  kept {kept} MiB" if kept else ""
            other = row.get("diffusers") or row["exact"]
            sys.stdout.write(
                f"{row['case']:58} {row['ours'][1]:9.3f} {other[1]:10.3f} "
                f"{row['unit']:2} {row['ratio']:6.2f}  {error}{more}\n"
            )
            sys.stdout.flush()
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1))


def _rows(part: str, full: bool) -> Iterator[dict[str, Any]]:
    if part == "load":
        yield from compare_loading("middle", rounds=5 if full else 2)
        if full:
            yield from compare_loading("full", rounds=2)
    elif part == "whole":
        yield compare_clips("bundled", steps=4, rounds=5 if full else 3)
        yield from compare_commands(rounds=5 if full else 2)
        if full:
            yield compare_clips("full", steps=4, rounds=1)
    elif part == "fast":
        yield from compare_levels(clips=8 if full else 3, rounds=3 if full else 1)
    elif part == "train":
        for checkpointing in (False, True):
            case = f"training step{', checkpointing' * checkpointing}, small, 16 frames"
            row = compare_training(checkpointing=checkpointing, rounds=7 if full else 3)
            yield {"case": case, "unit": "s", **row}
    else:
        yield from _forwards(full)


def _forwards(full: bool) -> Iterator[dict[str, Any]]:
    fp32, bf16 = torch.float32, torch.bfloat16
    most, rounds = (16, 5) if full else (4, 3)
    cases = [
        *(("forward", size, 16, kind, rounds) for size in ("bundled", "small")
          for kind in (fp32, bf16)),
        *(("growth", "small", frames, fp32, 1) for frames in (32, 64, 128)),
        *(("forward", "full", most, kind, 2) for kind in (fp32, bf16)),
    ]  # fmt: skip
    for name, size, frames, dtype, count in cases:
        kind = str(dtype).removeprefix("torch.")
        row = compare_forwards(size, frames, dtype, rounds=count)
        yield {"case": f"{name}, {size}, {frames} frames, {kind}", "unit": "s", **row}


if __name__ == "__main__":
    main()
