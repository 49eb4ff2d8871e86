"""Tensors in and out of files, and what is wrong with a file that holds none.

safetensors are written; pickles are only read, and only with weights_only=True.
"""

import hashlib
import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointError, SurroundingsError
from ..media import replacing

PICKLES = {".ckpt", ".pt", ".pth", ".bin"}


@dataclass(frozen=True)
class TensorFile:
    """What a weight file holds."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read_tensors(path: Path, *, only: tuple[str, ...] = ("",)) -> TensorFile:
    """The tensors of a safetensors file or pickle; a wrapping `state_dict` is taken off.

    `only` are prefixes of the names to read. Raises CheckpointError with what the file is
    instead, where it is no weight file.
    """
    check_weight_file(path)
    if is_safetensors(path):
        try:
            with safe_open(path, "pt") as file:
                names = [key for key in file.keys() if key.startswith(only)]  # noqa: SIM118
                tensors = {key: file.get_tensor(key) for key in names}
                return TensorFile(tensors, dict(file.metadata() or {}))
        except (SafetensorError, OSError) as error:
            raise _broken(path) from error
    tensors = _tensors_of(_unpickle(path), path)
    return TensorFile({key: t for key, t in tensors.items() if key.startswith(only)}, {})


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes without reading the tensors."""
    check_weight_file(path)
    if is_safetensors(path):
        try:
            with safe_open(path, "pt") as file:
                return {k: tuple(file.get_slice(k).get_shape()) for k in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise _broken(path) from error
    return {k: tuple(t.shape) for k, t in _tensors_of(_unpickle(path), path).items()}


def read_metadata(path: Path) -> dict[str, str]:
    """The text entries of a safetensors file; none for pickles."""
    if not is_safetensors(path):
        return {}
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _broken(path) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file, whole or not at all."""
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    with replacing(path) as beside:
        try:
            save_file(plain, beside, metadata=dict(metadata))
        except SafetensorError as error:
            raise SurroundingsError(f"{path}: cannot be written: {error}") from error


def digest(path: Path) -> str:
    """SHA-256 of a file, or of all files of a folder with their names, as hex."""
    total = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        if file != path:
            total.update(str(file.relative_to(path)).encode())
        with file.open("rb") as content:
            while block := content.read(1 << 20):
                total.update(block)
    return total.hexdigest()


def is_safetensors(path: Path) -> bool:
    """By content: eight bytes of header length, then JSON."""
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{"


def check_weight_file(path: Path) -> None:
    """Raise CheckpointError where `path` is missing or plainly something else."""
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder; name the weight file in it")
    if not path.exists():
        raise CheckpointError(f"{path}: no such file; check the path")
    with path.open("rb") as file:
        start = file.read(256)
    text = start.lstrip().lower()
    if not start:
        raise CheckpointError(f"{path}: is empty; download it again")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(
            f"{path}: is a web page, not weights; download the file itself "
            "(a site that asks for a log-in answers with a page)"
        )
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path}: is a Git LFS pointer, not the weights; run `git lfs pull` or download it"
        )
    if is_safetensors(path):
        _check_length(path, int.from_bytes(start[:8], "little"))
    elif not (zipfile.is_zipfile(path) or start[:1] == b"\x80"):
        if path.suffix in PICKLES or path.suffix == ".safetensors" or start[:2] == b"PK":
            raise _broken(path)
        raise CheckpointError(f"{path}: is no weight file; use .safetensors, .ckpt, .pt or .bin")


def _check_length(path: Path, header: int) -> None:
    """A cut download is shorter than its own header says."""
    size = path.stat().st_size
    if header > min(size - 8, 100_000_000):
        raise _broken(path)
    try:
        with path.open("rb") as file:
            file.seek(8)
            entries = json.loads(file.read(header))
        ends = [e["data_offsets"][1] for k, e in entries.items() if k != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise _broken(path) from error
    if size < 8 + header + max(ends, default=0):
        raise _broken(path)


def _broken(path: Path) -> CheckpointError:
    return CheckpointError(f"{path}: is truncated or damaged; download it again")


def _unpickle(path: Path) -> Any:
    try:
        return torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        if (
            "Unsupported" in str(error)
            or "GLOBAL" in str(error)
            or "weights_only" in str(error).lower()
        ):
            raise CheckpointError(
                f"{path}: holds more than tensors (it could run code) and is not opened; "
                "use a .safetensors version of it"
            ) from error
        raise _broken(path) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise _broken(path) from error


def _tensors_of(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of an unpickled file, out of their wrapper."""
    while isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no named tensors; use a file of model weights")
    return {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
