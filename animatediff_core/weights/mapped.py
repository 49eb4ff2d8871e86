"""Tensors of safetensors files as the file's own pages, which are given back one tensor at a time.

The library maps a file as one storage: its pages stay in memory for as long as any tensor of it is
kept. Here each tensor has a storage of its own over one mapping, and what a model packs, converts
or moves to a GPU leaves main memory tensor by tensor, so that loading peaks at the weights once.
"""

import json
import mmap
import weakref
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


def map_tensors(path: Path, names: Collection[str]) -> dict[str, Tensor]:
    """Some tensors of a safetensors file whose header has been checked, by name.

    Writing into one changes a private copy of its pages, never the file. Raises ValueError for a
    type that torch has no word for.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return {name: _tensor(pages, 8 + length, header[name]) for name in names}


def _tensor(pages: mmap.mmap, data: int, entry: dict[str, Any]) -> Tensor:
    """The tensor of one entry of the header; `data` is where the values begin."""
    if (dtype := _TYPES.get(entry["dtype"])) is None:
        raise ValueError(f"type {entry['dtype']}")
    start, end = (data + int(offset) for offset in entry["data_offsets"])
    if start == end:
        return torch.empty(entry["shape"], dtype=dtype)
    values = np.frombuffer(pages, np.uint8, end - start, start)
    _give_back_after(values, pages, start, end)
    found = torch.from_numpy(values)
    if start % dtype.itemsize:
        found = found.clone()
    return found.view(dtype).view(entry["shape"])


def _give_back_after(values: np.ndarray, pages: mmap.mmap, start: int, end: int) -> None:
    """When nobody holds these values any more, their whole pages leave main memory."""
    size = mmap.PAGESIZE
    first, last = -(-start // size) * size, end // size * size
    if first < last and hasattr(pages, "madvise"):
        ending = weakref.finalize(values, pages.madvise, mmap.MADV_DONTNEED, first, last - first)
        ending.atexit = False
