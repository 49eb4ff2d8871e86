"""A weight file, opened once a run: names, shapes, dtypes and metadata, tensors on demand.

`open_weights` keeps what it found by path, size and time of change, so planning, `inspect` and
loading share one opening. Only names and shapes stay in memory. The tensors of a safetensors file
are mapped anew by each call. Those of a pickle in torch's zip form come with its names, as pages
of the file: they are kept until they are asked for, and each is handed out once, so that no two
models share memory. Pickles of the older form, whose tensors would take memory, are read again.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import CheckpointError
from .files import check_plain_file, printable, read_config_json, unreadable
from .folder import CLIP, DIFFUSION, weight_files
from .pickles import broken, is_archive, read_pickle, refused
from .safetensors_file import Header, headers_only, is_safetensors, map_tensors, read_header

Shapes = Mapping[str, tuple[int, ...]]
_MAX_OPEN = 256
"""Files whose names are remembered; a few hundred kilobytes each."""
_MAX_NAME = 512
_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_DTYPES = {
    "F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16", "float64": "fp64",
    "float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float8_e4m3fn": "f8_e4m3",
    "float8_e5m2": "f8_e5m2",
}  # fmt: skip
_FORMS = {
    ".gguf": "a quantised GGUF model", ".onnx": "an ONNX model", ".engine": "a TensorRT engine",
    ".trt": "a TensorRT engine", ".msgpack": "Flax weights", ".h5": "Keras weights",
}  # fmt: skip
"""Other programs' files by their ending."""
_TORCH = {short: name for name, short in _DTYPES.items() if name.islower()}
"""torch's names of the dtypes that have a short one."""


@dataclass(frozen=True, eq=False)
class WeightFile:
    """The content of a safetensors file or pickle."""

    path: Path
    container: Literal["safetensors", "pickle"]
    shapes: dict[str, tuple[int, ...]]
    """By name, in file order. A pickle's inner dictionaries (IP-Adapter's `image_proj`, the web
    UI's `string_to_param`) have dotted names; a `state_dict` or `controlnet` around everything is
    taken off."""
    dtypes: dict[str, str]
    """By name: fp32, fp16, bf16, f8_e4m3, i64, …"""
    metadata: dict[str, str]
    """The text entries of a safetensors file; the texts and numbers beside a pickle's tensors,
    outside the wrapper too (`name`, `global_step`)."""
    config: Mapping[str, Any] | None = None
    """The config.json of a model's folder; None for a file."""
    _header: Header = field(default_factory=dict, repr=False)
    _data: int = field(default=0, repr=False)
    """Where the values of a safetensors file begin."""
    _mapped: dict[str, Tensor] = field(default_factory=dict, repr=False)
    """Tensors of a pickle that are pages of the file and that nobody has asked for yet."""

    def tensors(self, *prefixes: str) -> dict[str, Tensor]:
        """The tensors whose names begin with one of `prefixes` (all without any), by full name.

        They are the caller's own: changing one changes neither the file nor another call's. Under
        torch's meta device they have no values, and nothing but the header is read: so each loader
        checks a file before it is loaded.
        """
        names = [name for name in self.shapes if not prefixes or name.startswith(prefixes)]
        if self.container == "safetensors":
            entries = {name: self._header[name] for name in names}
            return map_tensors(self.path, entries, self._data)
        if headers_only():
            return {name: self._without_values(name) for name in names}
        if self._mapped.keys() >= set(names):
            return {name: self._mapped.pop(name) for name in names}
        tensors, _ = read_pickle(self.path)
        if not tensors.keys() >= set(names):
            raise CheckpointError(f"{self.path}: changed while it was in use; start again")
        return {name: tensors[name] for name in names}

    def _without_values(self, name: str) -> Tensor:
        dtype = self.dtypes[name]
        return torch.empty(self.shapes[name], dtype=getattr(torch, _TORCH.get(dtype, dtype)))

    @property
    def parameters(self) -> int:
        """How many numbers the file holds."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def dtype(self) -> str:
        """The dtypes of its floating-point numbers (of all, where there are none), most first."""
        counts: Counter[str] = Counter()
        for name, shape in self.shapes.items():
            counts[self.dtypes[name]] += math.prod(shape)
        real = [d for d, _ in counts.most_common() if d.startswith(("fp", "bf", "f8"))]
        return ", ".join(real or [d for d, _ in counts.most_common()])


@dataclass(frozen=True, eq=False)
class _Folder(WeightFile):
    """A folder's weights, which may lie in several files."""

    files: tuple[WeightFile, ...] = ()

    def tensors(self, *prefixes: str) -> dict[str, Tensor]:
        return {k: t for file in self.files for k, t in file.tensors(*prefixes).items()}


def open_model(path: Path) -> WeightFile:
    """A weight file, or the weights of a folder that holds one model and its config.json."""
    if not path.is_dir():
        return open_weights(path)
    config = read_config_json(path / "config.json")
    stem = DIFFUSION if "_class_name" in config else CLIP
    files = tuple(open_weights(file) for file in weight_files(path, stem))
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, str] = {}
    for file in files:
        if twice := shapes.keys() & file.shapes.keys():
            raise CheckpointError(
                f"{path}: two files hold {printable(min(twice))}; download the folder again"
            )
        shapes |= file.shapes
        dtypes |= file.dtypes
    first = files[0]
    return _Folder(path, first.container, shapes, dtypes, first.metadata, config, files=files)


def open_weights(path: Path) -> WeightFile:
    """The weight file at a path, checked and listed once for as long as it does not change.

    Raises CheckpointError with what the file is instead, if it is no weight file or hostile.
    """
    check_plain_file(path, "weight")
    entry = path.stat()
    return _opened(path, entry.st_size, entry.st_mtime_ns, entry.st_ino)


def close_weights() -> None:
    """Forget all opened files: for the end of a run and for tests."""
    _opened.cache_clear()


@lru_cache(maxsize=_MAX_OPEN)
def _opened(path: Path, size: int, time: int, inode: int) -> WeightFile:
    """All but `path` only tell two states of a file apart."""
    try:
        with path.open("rb") as content:
            start = content.read(256)
    except OSError as error:
        raise unreadable(path, error) from error
    _check_start(start, path)
    if is_safetensors(path):
        header, metadata, data = read_header(path)
        shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
        dtypes = {name: _dtype(entry["dtype"]) for name, entry in header.items()}
        opened = WeightFile(
            path, "safetensors", shapes, dtypes, metadata, _header=header, _data=data
        )
    else:
        tensors, metadata = read_pickle(path)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        dtypes = {name: _dtype(str(tensor.dtype)) for name, tensor in tensors.items()}
        mapped = tensors if is_archive(path) else {}
        opened = WeightFile(path, "pickle", shapes, dtypes, metadata, _mapped=mapped)
    for name in opened.shapes:  # names reach messages and logs
        if len(name) > _MAX_NAME or not name.isprintable():
            raise refused(path, f"names a tensor '{printable(name)}'")
    return opened


def _check_start(start: bytes, path: Path) -> None:
    """Raise CheckpointError if the first bytes are plainly of something else."""
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
    if (form := _FORMS.get(path.suffix)) is not None or start[:4] == b"GGUF":
        raise CheckpointError(
            f"{path}: is {form or _FORMS['.gguf']}, which cannot be used; use the .safetensors "
            "file of the same model in fp16 or fp32"
        )
    if start[8:9] == b"{" or start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":
        return
    if path.suffix in _SUFFIXES or start[:2] == b"PK":
        raise broken(path)
    raise CheckpointError(f"{path}: is no weight file; use .safetensors, .ckpt, .pt or .bin")


def _dtype(name: str) -> str:
    name = name.removeprefix("torch.")
    return _DTYPES.get(name, name.lower())
