"""`make bench`: this program beside diffusers, as one table and as build/bench.json.

Both sides take turns, on a GPU where there is one and `--device cpu` does not say otherwise (see
place.py). On the CPU they are warmed up and run on one thread, and what counts inside one process
is the thread's own CPU time; loads and whole commands are processes of their own, on one thread,
and what counts is their user and system time. Other work on the machine makes wall times lie.
Medians and the ratio diffusers/ours are printed, fastest and slowest runs are in the file.
The full size, SD1.5 and v2 of random weights, takes up to 20 GB of memory; `--full`, and any GPU,
measures it at 16 frames instead of 4, trains it, loads it and makes a clip with it (6 GB in
build/), and `--full` takes more rounds; names (forward, train, load, whole, fast) choose parts. The
other side of `fast` is our own exact clip.
"""

import argparse
import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from fast import compare_latents, compare_levels
from forward import compare_forwards
from load import compare_loading
from place import PLACES, Place, place_of
from train import compare_training
from whole import compare_clips, compare_commands

from animatediff_core.errors import AnimateDiffError
from animatediff_core.sampling.device import choose

RESULTS = Path("build") / "bench.json"
PARTS = ("load", "whole", "fast", "train", "forward")


def main() -> None:
    """Run the chosen parts and print each row as it is there."""
    asked = _asked()
    place = place_of(asked.device)
    torch.set_num_threads(1)
    rows = []
    sys.stdout.write(f"{'case':58} {'ours':>9} {'other':>10}    ratio     error\n")
    for part in (one for one in PARTS if one in (asked.parts or PARTS)):
        for row in _rows(place, part, asked.full):
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
            gc.collect()  # models are cycles: they go before the next ones come
    RESULTS.parent.mkdir(exist_ok=True)
    found = {"torch": torch.__version__, "device": place.name(), "rows": rows}
    RESULTS.write_text(json.dumps(found, indent=1))


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default"
    )
    parser.add_argument("--full", action="store_true", help="the full size, and more rounds")
    parser.add_argument("--device", choices=PLACES, help="a GPU by default, where there is one")
    asked = parser.parse_args()
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    try:
        choose(asked.device, None)
    except AnimateDiffError as error:
        parser.error(str(error))
    return asked


def _rows(place: Place, part: str, full: bool) -> Iterator[dict[str, Any]]:
    if part == "load":
        yield from compare_loading(place, "middle", rounds=5 if full else 2)
        if full or place.roomy:
            yield from compare_loading(place, "full", rounds=2)
    elif part == "whole":
        yield compare_clips(place, "bundled", steps=4, rounds=5 if full else 3)
        yield from compare_commands(place, rounds=5 if full else 2)
        if full or place.roomy:
            yield compare_clips(place, "full", steps=4, rounds=1)
    elif part == "fast":
        yield from compare_levels(place, clips=8 if full else 3, rounds=3 if full else 1)
        if full or place.roomy:
            yield from compare_latents(place, frames=4, scheduler="ddim")
    elif part == "train":
        yield from _training(place, full)
    else:
        yield from _forwards(place, full)


def _training(place: Place, full: bool) -> Iterator[dict[str, Any]]:
    rounds = 7 if full else 3
    cases = [("small", 16, False, rounds), ("small", 16, True, rounds)]
    if full or place.roomy:
        cases += [("full", 4, False, 3), ("full", 6, True, 3)]
    for size, frames, checkpointing, count in cases:
        case = f"training step{', checkpointing' * checkpointing}, {size}, {frames} frames"
        row = compare_training(place, size, frames, checkpointing=checkpointing, rounds=count)
        yield {"case": case, "unit": "s", **row}


def _forwards(place: Place, full: bool) -> Iterator[dict[str, Any]]:
    rounds, most = 5 if full else 3, 16 if full or place.roomy else 4
    kinds = [(dtype, made) for made in place.compiles for dtype in place.dtypes]
    cases = [
        *(("forward", size, 16, kind, rounds) for size in ("bundled", "small") for kind in kinds),
        *(("growth", "small", frames, kinds[0], 1) for frames in (32, 64, 128)),
        *(("forward", "full", most, kind, 2) for kind in kinds),
    ]
    for name, size, frames, (dtype, made), count in cases:
        kind = str(dtype).removeprefix("torch.") + ", compiled" * made
        row = compare_forwards(place, size, frames, dtype, rounds=count, compiled=made)
        yield {"case": f"{name}, {size}, {frames} frames, {kind}", "unit": "s", **row}


if __name__ == "__main__":
    main()
