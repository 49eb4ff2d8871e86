"""Pickled weight files (.ckpt, .pt, .bin), torch's zip archives and the older plain form.

A pickle is a program. torch's weights_only=True runs only a few known calls of it, but trusts its
sizes, its depth and the archive around it. So its operations are walked through first, without
running any, and the tensors that come out may not claim more than the file holds.
"""

import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from pickletools import genops
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from ..errors import CheckpointError

MAX_TENSORS = 20_000
"""More than any real file: SDXL has 2,600, big LyCORIS files have some thousands."""
MALFORMED = (
    RuntimeError, OSError, EOFError, ValueError, TypeError, LookupError, AttributeError,
    AssertionError, MemoryError, ArithmeticError, NotImplementedError, struct.error,
    zipfile.BadZipFile, pickle.UnpicklingError,
)  # fmt: skip
"""What the readers of all formats raise where content is not what they expect."""
_MAX_PICKLE = 8 << 20
_MAX_OPERATIONS = 400_000
"""A tensor takes about 30."""
_MAX_TEXT = 1 << 20
_MAX_DEPTH = 50
_MAX_DIRECTORY = 8 << 20
_MAGIC = 0x1950A86A20F9469CFC6C
_KNOWN = {
    "collections OrderedDict", "collections Counter", "torch Size", "torch device",
    "torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter", "torch._utils _rebuild_parameter_with_state",
    "builtins set", "__builtin__ set", "torch.nn.modules.container ParameterDict",
}  # fmt: skip
"""The last one is what the first textual inversions keep their vectors in."""
_TYPES = ("float", "bfloat", "int", "uint", "bool", "complex")
_PUSH = {
    "NONE", "NEWTRUE", "NEWFALSE", "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "BININT", "BININT1",
    "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1", "GLOBAL",
}  # fmt: skip
_JOIN = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "REDUCE": 2, "NEWOBJ": 2, "BINPERSID": 1}
_FILL = {"APPEND": 1, "SETITEM": 2, "BUILD": 1}


def load_pickle(path: Path) -> Any:
    """The content of a pickled file, whose tensors all lie inside it.

    Raises CheckpointError where it is damaged, could run code, or claims more than it holds.
    """
    archive = is_archive(path)
    try:
        _check_archive(path) if archive else _check_plain(path)
        with torch.serialization.safe_globals([nn.ParameterDict]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError as error:
        if any(word in str(error) for word in ("Unsupported", "GLOBAL", "eights")):
            raise runs_code(path) from error
        raise broken(path) from error
    except MALFORMED as error:
        raise broken(path) from error
    _check_tensors(content, path)
    return content


def is_archive(path: Path) -> bool:
    """Whether torch will take a file for its zip archive: by its first bytes."""
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


def runs_code(path: Path) -> CheckpointError:
    """The error for a pickle with calls in it."""
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
    names = [member.filename for member in members]
    if any(name.endswith(("/constants.pkl", ".debug_pkl")) for name in names):
        raise CheckpointError(
            f"{path}: is a TorchScript program, not weights; use a .safetensors version of it"
        )
    if any(_climbs(name) for name in names) or len(set(names)) < len(names):
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
    with path.open("rb") as file:
        file.seek(pickles[0].header_offset)
        header = file.read(30)
        name, extra = struct.unpack("<HH", header[26:])
        file.seek(name + extra, io.SEEK_CUR)
        _walk(io.BytesIO(file.read(pickles[0].file_size)), path)


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
        if [argument for name, argument in _operations(file)][1:] != [_MAGIC, None]:
            raise broken(path)
        for _ in range(4):
            _walk(file, path)


def _operations(file: BinaryIO) -> Iterator[tuple[str, Any]]:
    """(name, argument) of one pickle's operations."""
    for operation, argument, _ in genops(_Short(file)):  # type: ignore[arg-type]
        yield operation.name, argument


class _Short:
    """A file whose reads stay short, whatever length a pickle names."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def read(self, size: int) -> bytes:
        if size > _MAX_TEXT:
            raise ValueError(f"a text of {size} bytes")
        return self.file.read(size)

    def readline(self) -> bytes:
        return self.file.readline(_MAX_TEXT)

    def tell(self) -> int:
        return self.file.tell()


def _walk(file: BinaryIO, path: Path) -> None:
    """Follow one pickle's operations and the depth of what they would build.

    Depth matters since Python hashes tuples by recursion, without a limit of its own.
    """
    depths: list[int] = []
    marks: list[int] = []
    memo: dict[int, int] = {}
    for number, (name, argument) in enumerate(_operations(file)):
        if number > _MAX_OPERATIONS:
            raise refused(path, "describes its tensors in too many steps")
        if name == "GLOBAL" and not _is_known(argument):
            raise runs_code(path)
        if name in _PUSH:
            depths.append(0)
        elif name in _JOIN or name == "TUPLE":
            parts = _popped(depths, marks.pop() if name == "TUPLE" else len(depths) - _JOIN[name])
            depths.append(1 + max(parts, default=0))
        elif name in _FILL or name in ("APPENDS", "SETITEMS"):
            parts = _popped(depths, len(depths) - _FILL[name] if name in _FILL else marks.pop())
            depths[-1] = max(depths[-1], 1 + max(parts, default=0))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = depths[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            depths.append(memo[argument])
        elif name == "MARK":
            marks.append(len(depths))
        elif name not in ("PROTO", "STOP"):
            raise runs_code(path)
        if depths and depths[-1] > _MAX_DEPTH:
            raise refused(path, f"nests its content more than {_MAX_DEPTH} deep")


def _is_known(name: str) -> bool:
    module, _, kind = name.partition(" ")
    types = kind.endswith("Storage") or kind.startswith(_TYPES)
    return name in _KNOWN or (module == "torch" and types)


def _popped(depths: list[int], start: int) -> list[int]:
    if start < 0:
        raise IndexError
    parts = depths[start:]
    del depths[start:]
    return parts


def _check_tensors(content: Any, path: Path) -> None:
    """Every tensor's values are in the file, once: no repeated or borrowed memory."""
    size = path.stat().st_size
    storages: dict[int, int] = {}
    total = 0
    for number, tensor in enumerate(_all_tensors(content)):
        if number > MAX_TENSORS:
            raise refused(path, f"holds more than {MAX_TENSORS} tensors")
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise refused(path, f"holds a tensor on {tensor.device.type}")
        storage = tensor.untyped_storage()
        wanted = tensor.numel() * tensor.element_size()
        if wanted > storage.nbytes():
            raise refused(path, f"claims {wanted} bytes for a tensor of {storage.nbytes()}")
        storages[storage.data_ptr()] = storage.nbytes()
        total += wanted
    if sum(storages.values()) > size or total > 4 * size:
        raise refused(path, "claims more values than it has room for")


def _all_tensors(content: Any) -> Iterator[Tensor]:
    """Every tensor in nested containers, each once."""
    waiting, seen = [content], set()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        if isinstance(one, Tensor):
            seen.add(id(one))
            yield one
        elif isinstance(one, dict | list | tuple | set):
            seen.add(id(one))
            waiting.extend([*one, *one.values()] if isinstance(one, dict) else one)
        elif isinstance(one, nn.ParameterDict):
            seen.add(id(one))
            waiting.append(vars(one))
