"""Tensors in and out of files, and what is wrong with a file that holds none.

safetensors are written; pickles are only read, and only with weights_only=True.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointError
from ..media.atomic import atomic_write
from .mapped import map_tensors
from .pickles import MALFORMED, MAX_TENSORS, broken, is_archive, load_pickle, refused

PICKLES = {".ckpt", ".pt", ".pth", ".bin"}
_MAX_HEADER = 16 << 20
"""Bytes before the values of a safetensors file: names, shapes and metadata."""
_MAX_NAME = 512
_MAX_WRAPPERS = 4
MAX_JSON = 1 << 20
"""Bytes of a configuration in a folder; real ones have some hundred."""


@dataclass(frozen=True)
class TensorFile:
    """What a weight file holds."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read_tensors(path: Path, *, only: tuple[str, ...] = ("",)) -> TensorFile:
    """The tensors of a safetensors file or pickle; a wrapping `state_dict`, or SparseCtrl's
    `controlnet`, is taken off.

    `only` are prefixes of the names to read. Raises CheckpointError with what the file is
    instead, where it is no weight file.
    """
    check_weight_file(path)
    if is_safetensors(path):
        try:
            with safe_open(path, "pt") as file:
                names = [key for key in file.keys() if key.startswith(only)]  # noqa: SIM118
                metadata = dict(file.metadata() or {})
            return TensorFile(map_tensors(path, names), metadata)
        except (SafetensorError, *MALFORMED) as error:
            raise broken(path) from error
    tensors = _tensors_of(load_pickle(path), path)
    return TensorFile({key: t for key, t in tensors.items() if key.startswith(only)}, {})


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes without reading the tensors."""
    check_weight_file(path)
    if is_safetensors(path):
        try:
            with safe_open(path, "pt") as file:
                return {k: tuple(file.get_slice(k).get_shape()) for k in file.keys()}  # noqa: SIM118
        except (SafetensorError, *MALFORMED) as error:
            raise broken(path) from error
    return {k: tuple(t.shape) for k, t in _tensors_of(load_pickle(path), path).items()}


def read_pickle(path: Path) -> Any:
    """All that a pickled file holds, for forms that are more than named tensors."""
    check_weight_file(path)
    return load_pickle(path)


def read_metadata(path: Path) -> dict[str, str]:
    """The text entries of a safetensors file; none for pickles."""
    check_weight_file(path)
    if not is_safetensors(path):
        return {}
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, *MALFORMED) as error:
        raise broken(path) from error


def read_config_json(path: Path, *, largest: int = MAX_JSON) -> dict[str, Any]:
    """A configuration file of a diffusers folder: one JSON object of at most `largest` bytes.

    Raises CheckpointError where it is missing, unreadable or anything else.
    """
    _check_plain_file(path, "configuration")
    if (size := path.stat().st_size) > largest:
        raise refused_json(path, f"has {size >> 10} KiB")
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise _unreadable(path, error) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise refused_json(path, "is no JSON") from error
    if not isinstance(content, dict):
        raise refused_json(path, "is JSON but no object of named settings")
    return content


def refused_json(path: Path, why: str) -> CheckpointError:
    """The error for a folder's JSON file that makes no sense."""
    return CheckpointError(f"{path}: {why}; take the file from the model's own folder again")


def printable(text: object) -> str:
    """A name out of a file as a message may show it: no control characters, not long."""
    shown = str(text)[:200]
    shown = shown if shown.isprintable() else ascii(shown)[1:-1]
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file, whole or not at all."""
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    with atomic_write(path) as beside:
        save_file(plain, beside, metadata=dict(metadata))


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
    """Raise CheckpointError where `path` is missing, plainly something else or hostile."""
    _check_plain_file(path, "weight")
    try:
        with path.open("rb") as file:
            start = file.read(256)
    except OSError as error:
        raise _unreadable(path, error) from error
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
        _check_header(path, int.from_bytes(start[:8], "little"))
    elif not (is_archive(path) or start[:1] == b"\x80"):
        if path.suffix in PICKLES or path.suffix == ".safetensors" or start[:2] == b"PK":
            raise broken(path)
        raise CheckpointError(f"{path}: is no weight file; use .safetensors, .ckpt, .pt or .bin")


def _check_plain_file(path: Path, kind: str) -> None:
    """Links are followed; what they end in must be a file, not a device, pipe or nothing."""
    try:
        there, plain, folder = path.exists(), path.is_file(), path.is_dir()
        dangling = path.is_symlink() and not there
    except (OSError, RuntimeError, ValueError) as error:
        raise _unreadable(path, error) from error
    if dangling:
        raise CheckpointError(f"{path}: is a link to nothing; download the file it should lead to")
    if not there:
        raise CheckpointError(f"{path}: no such file; check the path")
    if folder:
        raise CheckpointError(f"{path}: is a folder; name the {kind} file in it")
    if not plain:
        raise CheckpointError(f"{path}: is no plain file; name a {kind} file")


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    why = getattr(error, "strerror", None) or "it is no path"
    return CheckpointError(f"{printable(path)}: cannot be read ({why}); check its permissions")


def _check_header(path: Path, length: int) -> None:
    """Sane in size, and all that it lists lies in the file once, without gaps.

    A cut download is shorter than its own header says. The library checks offsets against shapes
    and the file's length, and that metadata is text.
    """
    if length > path.stat().st_size - 8:
        raise broken(path)
    if length > _MAX_HEADER:
        raise refused(path, f"has a header of {length >> 20} MiB")
    with path.open("rb") as file:
        file.seek(8)
        if file.read(length).count(b'"data_offsets"') > MAX_TENSORS:
            raise refused(path, f"lists more than {MAX_TENSORS} tensors")
    try:
        with safe_open(path, "pt") as content:
            names = list(content.keys())
    except (SafetensorError, *MALFORMED) as error:
        raise broken(path) from error
    check_names(names, path)


def check_names(names: Collection[str], path: Path) -> None:
    """Names reach messages and logs, so they must be short and printable; none names a path."""
    if len(names) > MAX_TENSORS:
        raise refused(path, f"lists more than {MAX_TENSORS} tensors")
    for name in names:
        if len(name) > _MAX_NAME or not name.isprintable():
            raise refused(path, f"names a tensor '{printable(name)}'")


def _tensors_of(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of an unpickled file, out of their wrapper."""
    for _ in range(_MAX_WRAPPERS):
        for wrapper in ("state_dict", "controlnet"):
            if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
                content = content[wrapper]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no named tensors; use a file of model weights")
    tensors = {
        str(key): tensor
        for key, tensor in content.items()
        if isinstance(key, str | int) and isinstance(tensor, Tensor)
    }
    check_names(tensors, path)
    return tensors
