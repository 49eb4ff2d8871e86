"""safetensors files: the header, and tensors as the file's own pages.

The library maps a file as one storage: its pages stay in memory for as long as any tensor of it is
in use. Here each tensor has a storage of its own over one mapping, and every tensor that a model
packs, converts or moves to a GPU leaves main memory by itself, so that loading peaks at the
weights once.
"""

import json
import mmap
import weakref
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .pickles import MAX_TENSORS, broken, refused

Header = dict[str, dict[str, Any]]
"""By tensor: `dtype`, `shape` and `data_offsets`."""
_MAX_HEADER = 16 << 20
"""Bytes before the values: names, shapes and metadata."""
_SENSELESS = (
    SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError,
    OverflowError,
)  # fmt: skip
"""What reading a header of changed bytes raises."""
_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


def headers_only() -> bool:
    """Whether files are only checked: torch's default device is meta, so no value is read."""
    return torch.get_default_device().type == "meta"


def is_safetensors(path: Path) -> bool:
    """By content: eight bytes of header length, then JSON."""
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{"


def read_header(path: Path) -> tuple[Header, dict[str, str], int]:
    """The tensors that a file lists, in file order, its metadata, and where its values begin.

    Raises CheckpointError. The library checks that all lies in the file once, without gaps, as
    its shapes need, and that metadata is text. Numbers in the metadata and bytes after the last
    tensor are forgiven. A cut download is shorter than its header says.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size - 8:
            raise broken(path)
        if length > _MAX_HEADER:
            raise refused(path, f"has a header of {length >> 20} MiB")
        text = file.read(length)
    if text.count(b'"data_offsets"') > MAX_TENSORS:
        raise refused(path, f"lists more than {MAX_TENSORS} tensors")
    try:
        try:
            with safe_open(path, "pt"):
                header: Header = json.loads(text)
        except SafetensorError:
            header = _forgiven(text, path.stat().st_size - 8 - length)
    except _SENSELESS as error:
        raise broken(path) from error
    metadata: dict[str, Any] = header.pop("__metadata__", {})
    return header, {key: str(value) for key, value in metadata.items()}, 8 + length


def _forgiven(text: bytes, size: int) -> Header:
    """A header whose metadata has numbers, or that says less than the `size` bytes of values.

    The library checks one without these faults, in a file with a hole for the values.
    """
    header: dict[str, Any] = json.loads(text)
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    end = max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
    twice = text.count(b'"data_offsets"') != len(tensors)
    if (
        twice
        or end > size
        or not all(
            isinstance(value, str | int | float)
            for value in header.get("__metadata__", {}).values()
        )
    ):
        raise ValueError("a name twice, values beyond the end, or senseless metadata")
    plain = json.dumps(tensors).encode()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "header.safetensors"
        with path.open("wb") as file:
            file.write(len(plain).to_bytes(8, "little") + plain)
            file.truncate(8 + len(plain) + end)
        with safe_open(path, "pt"):
            return header


def map_tensors(path: Path, entries: Header, data: int) -> dict[str, Tensor]:
    """Tensors of a file by entries of its header; `data` is where its values begin.

    Writing into one changes a private copy of its pages, never the file. Raises CheckpointError
    if the file has numbers of a type that torch does not know, or became shorter. Under torch's
    meta device they have no values, and the file is not opened.
    """
    if any(entry["dtype"] not in _TYPES for entry in entries.values()):
        raise broken(path)
    if headers_only():
        return {n: torch.empty(e["shape"], dtype=_TYPES[e["dtype"]]) for n, e in entries.items()}
    with path.open("rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    if any(data + entry["data_offsets"][1] > len(pages) for entry in entries.values()):
        raise broken(path)
    return {name: _tensor(pages, data, entry) for name, entry in entries.items()}


def _tensor(pages: mmap.mmap, data: int, entry: dict[str, Any]) -> Tensor:
    dtype = _TYPES[entry["dtype"]]
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
