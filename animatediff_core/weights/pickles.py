"""Pickled weight files (.ckpt, .pt, .bin): torch's zip archives and the older plain form.

A pickle is a program. torch's weights_only=True runs only a few known calls of it, but trusts its
sizes, its depth and the archive around it. These are bounded here, by following its operations
without running any, and no tensor that comes out may claim more than the file holds.
"""

import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from pickletools import OpcodeInfo, genops, markobject
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError

MAX_TENSORS = 20_000
"""More than any real file: SDXL has 2,600, big LyCORIS files have some thousands."""
_MAX_PICKLE = 8 << 20
_MAX_OPERATIONS = 400_000
"""A tensor takes about 30."""
_MAX_DEPTH = 50
_MAX_DIRECTORY = 8 << 20
_MAX_WRAPPERS = 4
_MAX_NESTED = 3
"""Dictionaries within dictionaries; real files have one or two."""
_WRAPPERS = ("state_dict", "controlnet")
_MAGIC = 0x1950A86A20F9469CFC6C
_KNOWN = {
    "collections OrderedDict", "collections Counter", "torch Size", "torch device",
    "torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter", "torch._utils _rebuild_parameter_with_state",
    "builtins set", "__builtin__ set", "torch.nn.modules.container ParameterDict",
}  # fmt: skip
"""The last one is what the first textual inversions keep their vectors in."""
_TYPES = ("float", "bfloat", "int", "uint", "bool", "complex")
_FILLS = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD")
_UNREADABLE = (
    pickle.UnpicklingError, RuntimeError, ValueError, TypeError, LookupError, AttributeError,
    AssertionError, EOFError, OSError,
)  # fmt: skip
"""What torch.load raises for changed bytes: it runs them, so they can fail in every way."""


def read_pickle(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a pickled file by name, and the texts and numbers beside them as text.

    Inner dictionaries have dotted names; a wrapper around everything is taken off. Raises
    CheckpointError if the file is damaged, could run code, or claims more than it holds.
    """
    content = _load(path)
    inner = content
    for _ in range(_MAX_WRAPPERS):
        for wrapper in _WRAPPERS:
            if isinstance(inner, dict) and isinstance(inner.get(wrapper), dict):
                inner = inner[wrapper]
    if isinstance(inner, Tensor):
        raise CheckpointError(
            f"{path}: is one tensor without a name, as an aesthetic gradient embedding, which "
            "cannot be used; use a textual inversion or a LoRA"
        )
    if not isinstance(inner, dict):
        raise CheckpointError(f"{path}: holds no named tensors; use a file of model weights")
    tensors = dict(_named_tensors(inner))
    _check_tensors(tensors, path)
    entries = [entry for part in (content, inner) for entry in part.items()]
    notes = {str(key): str(v) for key, v in entries if isinstance(v, str | int | float)}
    return tensors, notes


def is_archive(path: Path) -> bool:
    """Whether torch takes a file for its zip archive: by its first bytes."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def broken(path: Path) -> CheckpointError:
    """The error for a file that ends too early or makes no sense."""
    return CheckpointError(f"{path}: is truncated or damaged; download it again")


def refused(path: Path, why: str) -> CheckpointError:
    """The error for a file that no honest program writes."""
    return CheckpointError(
        f"{path}: {why}, as no file of weights does, and is not opened; "
        "use a .safetensors version of it from a source that you trust"
    )


def _load(path: Path) -> Any:
    archive = is_archive(path)
    try:
        _check_archive(path) if archive else _check_plain(path)
    except (ValueError, LookupError, OSError, struct.error, zipfile.BadZipFile) as error:
        raise broken(path) from error
    try:
        with torch.serialization.safe_globals([nn.ParameterDict]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except _UNREADABLE as error:
        words = ("Unsupported", "GLOBAL", "eights")
        if isinstance(error, pickle.UnpicklingError) and any(w in str(error) for w in words):
            raise _runs_code(path) from error
        raise broken(path) from error


def _runs_code(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path}: holds more than tensors (it could run code) and is not opened; "
        "use a .safetensors version of it"
    )


def _check_archive(path: Path) -> None:
    """torch stores its members plainly, under plain names, and nothing else in the file."""
    size = path.stat().st_size
    _check_directory(path, size)
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = {member.filename for member in members}
        if any(name.endswith(("/constants.pkl", ".debug_pkl")) for name in names):
            raise CheckpointError(
                f"{path}: is a TorchScript program, not weights; use a .safetensors version of it"
            )
        if any(map(_climbs, names)) or len(names) < len(members):
            raise refused(path, "has members that point out of it or stand twice")
        if any(member.compress_type or member.flag_bits & 1 for member in members):
            raise refused(path, "has compressed members")
        if sum(member.file_size for member in members) > size:
            raise refused(path, "claims more content than its own length")
        pickles = [m for m in members if PurePosixPath(m.filename).parts[1:] == ("data.pkl",)]
        if len(pickles) != 1:
            raise CheckpointError(
                f"{path}: is a zip archive without weights that torch saved; unpack it first"
            )
        if pickles[0].file_size > _MAX_PICKLE:
            raise refused(path, f"describes its tensors in {pickles[0].file_size >> 20} MiB")
        _check_operations(io.BytesIO(archive.read(pickles[0])), path)


def _check_directory(path: Path, size: int) -> None:
    """The archive's table of contents is last, whole, and of a length that costs no memory."""
    with path.open("rb") as file:
        file.seek(max(size - 98, 0))
        tail = file.read()
    if tail[-22:-18] != b"PK\x05\x06":
        raise broken(path)
    entries, length, start = struct.unpack("<HII", tail[-12:-2])
    end = size - 22
    if tail[-42:-38] == b"PK\x06\x07":
        entries, length, start = struct.unpack("<QQQ", tail[-66:-42])
        end = size - 98
    if start + length != end:
        raise broken(path)
    if length > _MAX_DIRECTORY or entries > MAX_TENSORS:
        raise refused(path, f"has {entries} members")


def _climbs(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name


def _check_plain(path: Path) -> None:
    """The form before torch 1.6: five pickles one after another, then the values."""
    if tarfile.is_tarfile(path):
        raise refused(path, "is a tar archive")
    with path.open("rb") as file:
        pickles = io.BytesIO(file.read(_MAX_PICKLE))
    if [argument for _, argument, _ in genops(pickles)][1:] != [_MAGIC, None]:
        raise broken(path)
    for _ in range(4):
        _check_operations(pickles, path)


def _check_operations(file: io.BytesIO, path: Path) -> None:
    """Follow one pickle's operations and the depth of the objects that they would build.

    Depth matters since Python hashes tuples by recursion, without a limit of its own.
    """
    depths: list[int] = []
    marks: list[int] = []
    memo: dict[Any, int] = {}
    for number, (operation, argument, _) in enumerate(genops(file)):
        name = operation.name
        if number > _MAX_OPERATIONS:
            raise refused(path, "describes its tensors in too many steps")
        protocol = argument if name == "PROTO" else 2  # torch.save's
        if protocol != 2 or (name == "GLOBAL" and not _is_known(str(argument))):
            raise _runs_code(path)
        if name == "MARK":
            marks.append(len(depths))
        elif name in ("BINGET", "LONG_BINGET"):
            depths.append(memo[argument])
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = depths[-1]
        else:
            _follow(operation, depths, marks)
        if depths and depths[-1] > _MAX_DEPTH:
            raise refused(path, f"nests its content more than {_MAX_DEPTH} deep")


def _follow(operation: OpcodeInfo, depths: list[int], marks: list[int]) -> None:
    """Change the stack as an operation's own description says, objects being their depths."""
    before = operation.stack_before
    counted = before.index(markobject) if markobject in before else len(before)
    start = (marks.pop() if markobject in before else len(depths)) - counted
    if start < 0:
        raise IndexError("nothing on the stack")
    taken = depths[start:]
    del depths[start:]
    if operation.name in _FILLS:
        depths.append(max(taken[0], 1 + max(taken[1:], default=0)))
    else:
        depths.extend(1 + max(taken, default=-1) for _ in operation.stack_after)


def _is_known(name: str) -> bool:
    module, _, kind = name.partition(" ")
    types = kind.endswith("Storage") or kind.startswith(_TYPES)
    return name in _KNOWN or (module == "torch" and types)


def _named_tensors(content: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested dictionaries by dotted names."""
    if isinstance(content, nn.ParameterDict):
        content = vars(content).get("_parameters")
    if isinstance(content, tuple):  # a hypernetwork's two layers
        content = dict(enumerate(content))
    if not isinstance(content, dict) or depth > _MAX_NESTED:
        return
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value.detach()
        elif isinstance(key, str | int):
            yield from _named_tensors(value, f"{prefix}{key}.", depth + 1)


def _check_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Every tensor's values are in the file, once: no repeated or borrowed memory."""
    size = path.stat().st_size
    storages: dict[int, int] = {}
    total = 0
    for tensor in tensors.values():
        storage = tensor.untyped_storage()
        wanted = tensor.numel() * tensor.element_size()
        if wanted > storage.nbytes():
            raise refused(path, f"claims {wanted} bytes for a tensor of {storage.nbytes()}")
        storages[storage.data_ptr()] = storage.nbytes()
        total += wanted
    if sum(storages.values()) > size or total > 4 * size:
        raise refused(path, "claims more values than it has room for")
