"""Sides that take turns, and what a turn costs: here, and in processes of their own."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from place import Place

Times = tuple[float, float, float]
"""Fastest, median, slowest."""


Sides = dict[str, Callable[[], object]]


def alternate(
    place: Place, sides: Sides, rounds: int, warm: Sides | None = None
) -> dict[str, Times]:
    """Fastest, median and slowest seconds of each side by the place's clock. They take turns after
    one run of each to warm up: its own, or what `warm` says."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for side in (warm or sides).values():
        side()
    for _ in range(rounds):
        for name, side in sides.items():
            start = place.thread_seconds()
            side()
            times[name].append(place.thread_seconds() - start)
    return {name: spread(values) for name, values in times.items()}


def spread(values: Sequence[float]) -> Times:
    """Of several runs."""
    return min(values), statistics.median(values), max(values)


@dataclass(frozen=True)
class Child:
    """What one process cost."""

    output: str
    cpu: float
    """User and system seconds."""
    wall: float
    """Seconds."""


def run_child(arguments: Sequence[str | Path]) -> Child:
    """Run this Python with arguments, on one thread; RuntimeError where it fails."""
    root = str(Path(__file__).parent.parent)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *map(str, arguments)], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        output = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{' '.join(map(str, arguments))} ended with {child.returncode}")
    return Child(output, usage.ru_utime + usage.ru_stime, time.perf_counter() - start)
