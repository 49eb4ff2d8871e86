"""Where both sides run: the CPU or a GPU, with the clock and the memory that count there.

On the CPU that is CPU time and the process's memory, for other work on the machine makes wall times
lie; on a GPU it is wall time between moments at which all of its work is done, and its own memory.
"""

import platform
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import torch


class Place(Protocol):
    """One of the two below."""

    device: torch.device
    dtypes: tuple[torch.dtype, ...]
    """That forwards are measured in; the first one is a clip's."""
    compiles: tuple[bool, ...]
    """Whether torch.compile makes the blocks of both sides; each is a row."""
    roomy: bool
    """Whether the full size is quick enough to be measured always."""

    def thread_seconds(self) -> float:
        """Of work that this thread has asked for."""

    def process_seconds(self) -> float:
        """Of work that the process has asked for."""

    def memory(self) -> float:
        """Megabytes held now."""

    def peak(self) -> float:
        """The most megabytes held since `forget_peak`."""

    def forget_peak(self) -> None:
        """The peak begins anew."""

    def name(self) -> str:
        """The hardware's."""


@dataclass(frozen=True)
class OnCPU:
    """One thread of it."""

    device: ClassVar = torch.device("cpu")
    dtypes: ClassVar = (torch.float32, torch.bfloat16)
    compiles: ClassVar = (False,)
    roomy: ClassVar = False

    def thread_seconds(self) -> float:
        return time.thread_time()

    def process_seconds(self) -> float:
        return time.process_time()

    def memory(self) -> float:
        return _status("VmRSS")

    def peak(self) -> float:
        return _status("VmHWM")

    def forget_peak(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")

    def name(self) -> str:
        return platform.processor() or platform.machine()


@dataclass(frozen=True)
class OnGPU:
    """The first CUDA device."""

    device: ClassVar = torch.device("cuda", 0)
    dtypes: ClassVar = (torch.float16, torch.bfloat16)
    compiles: ClassVar = (False, True)
    roomy: ClassVar = True

    def thread_seconds(self) -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    def process_seconds(self) -> float:
        return self.thread_seconds()

    def memory(self) -> float:
        return torch.cuda.memory_allocated() / 1e6

    def peak(self) -> float:
        return torch.cuda.max_memory_allocated() / 1e6

    def forget_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    def name(self) -> str:
        return torch.cuda.get_device_name()


PLACES: dict[str, type[OnCPU] | type[OnGPU]] = {"cpu": OnCPU, "cuda": OnGPU}


def place_of(device: str | None) -> Place:
    """The place of a device; of none, a GPU where there is one. KeyError for another device."""
    usual = "cuda" if torch.cuda.is_available() else "cpu"
    place: Place = PLACES[device or usual]()
    return place


def _status(what: str) -> float:
    """Of this process, in megabytes."""
    match = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024 / 1e6
