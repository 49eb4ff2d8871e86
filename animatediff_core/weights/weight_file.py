"""A weight file, opened once a run: names, shapes, dtypes and metadata, tensors on demand.

`open_weights` keeps what it found by path, size and time of change, so planning, `inspect` and
loading share one opening. Only names and shapes stay in memory. The tensors of a safetensors file
are mapped anew by each call. Those of a pickle in torch's zip form come with its names, as pages
of the file: they are kept until they are asked for, and each is handed out once, so that no two
models share memory. Pickles of the older form, whose tensors would take memory, are read again.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import CheckpointError
from .files import check_names, check_weight_file, is_safetensors
from .mapped import map_tensors
from .pickles import MALFORMED, broken, is_archive, load_pickle

Shapes = Mapping[str, tuple[int, ...]]
_MAX_OPEN = 256
"""Files whose names are remembered; a few hundred kilobytes each."""
_WRAPPERS = ("state_dict", "controlnet")
_MAX_WRAPPERS = 4
_MAX_DEPTH = 3
"""Dictionaries within dictionaries; real files have one or two."""
_DTYPES = {
    "F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16", "float64": "fp64",
    "float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float8_e4m3fn": "f8_e4m3",
    "float8_e5m2": "f8_e5m2",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class WeightFile:
    """What a safetensors file or pickle holds."""

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
    _mapped: dict[str, Tensor] = field(default_factory=dict, repr=False)
    """Tensors of a pickle that are pages of the file and that nobody has asked for yet."""

    def tensors(self, *prefixes: str) -> dict[str, Tensor]:
        """The tensors whose names begin with one of `prefixes` (all without any), by full name.

        They are the caller's own: changing one changes neither the file nor another call's.
        """
        names = [name for name in self.shapes if not prefixes or name.startswith(prefixes)]
        if self.container == "safetensors":
            try:
                return map_tensors(self.path, names)
            except (SafetensorError, *MALFORMED) as error:
                raise broken(self.path) from error
        if self._mapped.keys() >= set(names):
            return {name: self._mapped.pop(name) for name in names}
        tensors = dict(_flat(_unwrapped(load_pickle(self.path))))
        if not tensors.keys() >= set(names):
            raise CheckpointError(f"{self.path}: changed while it was in use; start again")
        return {name: tensors[name] for name in names}

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
        real = [d for d, _ in counts.most_common() if d.startswith(("fp", "bf", "f8", "float8"))]
        return ", ".join(real or [d for d, _ in counts.most_common()])


def open_weights(path: Path) -> WeightFile:
    """The weight file at a path, checked and listed once for as long as it does not change.

    Raises CheckpointError with what the file is instead, where it is no weight file or hostile.
    """
    try:
        entry = path.stat()
    except (OSError, ValueError):
        check_weight_file(path)  # says why
        raise
    return _open(path, entry.st_size, entry.st_mtime_ns, entry.st_ino)


def close_weights() -> None:
    """Forget all opened files: for the end of a run and for tests."""
    _open.cache_clear()


@lru_cache(maxsize=_MAX_OPEN)
def _open(path: Path, size: int, time: int, inode: int) -> WeightFile:
    """All but `path` only tell two states of a file apart."""
    check_weight_file(path)
    return _listed_safetensors(path) if is_safetensors(path) else _listed_pickle(path)


def _listed_safetensors(path: Path) -> WeightFile:
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            dtypes = {name: _dtype(part.get_dtype()) for name, part in slices.items()}
            return WeightFile(path, "safetensors", shapes, dtypes, dict(file.metadata() or {}))
    except (SafetensorError, *MALFORMED) as error:
        raise broken(path) from error


def _listed_pickle(path: Path) -> WeightFile:
    content = load_pickle(path)
    inner = _unwrapped(content)
    if not isinstance(inner, dict):
        raise CheckpointError(f"{path}: holds no named tensors; use a file of model weights")
    tensors = dict(_flat(inner))
    check_names(tensors, path)
    return WeightFile(
        path,
        "pickle",
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
        {name: _dtype(tensor.dtype) for name, tensor in tensors.items()},
        {
            str(name): str(value)
            for part in (content, inner)
            for name, value in part.items()
            if isinstance(value, str | int | float)
        },
        tensors if is_archive(path) else {},
    )


def _dtype(name: object) -> str:
    name = str(name).removeprefix("torch.")
    return _DTYPES.get(name, name.lower())


def _unwrapped(content: Any) -> Any:
    for _ in range(_MAX_WRAPPERS):
        for wrapper in _WRAPPERS:
            if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
                content = content[wrapper]
    return content


def _flat(content: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested dictionaries by dotted names."""
    if isinstance(content, nn.ParameterDict):
        content = vars(content).get("_parameters")
    if not isinstance(content, dict) or depth > _MAX_DEPTH:
        return
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value.detach()
        elif isinstance(key, str | int):
            yield from _flat(value, f"{prefix}{key}.", depth + 1)
