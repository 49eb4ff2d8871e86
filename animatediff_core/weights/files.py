"""Files of models: what stands at a path, the JSON of folders, digests, and writing tensors.

safetensors are written; pickles are only read, and only with weights_only=True.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointError
from ..media.atomic import atomic_write

MAX_JSON = 1 << 20
"""Bytes of a configuration in a folder; real ones have some hundred."""


def read_config_json(path: Path, *, largest: int = MAX_JSON) -> dict[str, Any]:
    """A configuration file of a diffusers folder: one JSON object of at most `largest` bytes.

    Raises CheckpointError if it is missing, unreadable or anything else.
    """
    check_plain_file(path, "configuration")
    if (size := path.stat().st_size) > largest:
        raise refused_json(path, f"has {size >> 10} KiB")
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
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


def check_plain_file(path: Path, kind: str) -> None:
    """Links are followed; what they end in must be a file, not a device, pipe or nothing."""
    try:
        exists, plain, folder = path.exists(), path.is_file(), path.is_dir()
        dangling = path.is_symlink() and not exists
    except (OSError, RuntimeError, ValueError) as error:
        raise unreadable(path, error) from error
    if dangling:
        raise CheckpointError(f"{path}: is a link to nothing; download the file it should point to")
    if not exists:
        raise CheckpointError(f"{path}: no such file; check the path")
    if folder:
        raise CheckpointError(f"{path}: is a folder; name the {kind} file in it")
    if not plain:
        raise CheckpointError(f"{path}: is no plain file; name a {kind} file")


def unreadable(path: Path, error: Exception) -> CheckpointError:
    """The error for a path that the system does not open."""
    why = getattr(error, "strerror", None) or "it is no path"
    return CheckpointError(f"{printable(path)}: cannot be read ({why}); check its permissions")
