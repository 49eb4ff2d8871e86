"""What a weight file lists, without its data: names, shapes, dtypes, metadata.

Dictionaries within a pickle (IP-Adapter's `image_proj` and `ip_adapter`, the web UI's
`string_to_param`) are listed by dotted names.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .files import check_weight_file, is_safetensors, read_pickle
from .pickles import MALFORMED, broken

Shapes = Mapping[str, tuple[int, ...]]
_DTYPES = {
    "F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16", "float64": "fp64",
    "float32": "fp32", "float16": "fp16", "bfloat16": "bf16",
}  # fmt: skip
_DEEPEST = 3
"""Dictionaries within dictionaries; real files have one or two."""


@dataclass(frozen=True)
class Listing:
    """Names, shapes and kinds of a file's tensors."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    """By name: fp32, fp16, bf16, …"""
    metadata: Mapping[str, str]

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


def read_listing(path: Path) -> Listing:
    """List a safetensors file or pickle; CheckpointError where it is no weight file."""
    check_weight_file(path)
    if not is_safetensors(path):
        tensors = dict(_flat(read_pickle(path), "", 0))
        kinds = {key: str(t.dtype).removeprefix("torch.") for key, t in tensors.items()}
        return _listed({key: tuple(t.shape) for key, t in tensors.items()}, kinds, {})
    try:
        with safe_open(path, "pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            shapes = {key: tuple(one.get_shape()) for key, one in slices.items()}
            kinds = {key: str(one.get_dtype()) for key, one in slices.items()}
            return _listed(shapes, kinds, dict(file.metadata() or {}))
    except (SafetensorError, *MALFORMED) as error:
        raise broken(path) from error


def _listed(
    shapes: dict[str, tuple[int, ...]], kinds: Mapping[str, str], metadata: Mapping[str, str]
) -> Listing:
    return Listing(shapes, {k: _DTYPES.get(d, d.lower()) for k, d in kinds.items()}, metadata)


def _flat(content: Any, prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, nn.ParameterDict):
        content = vars(content).get("_parameters")
    if not isinstance(content, dict) or depth > _DEEPEST:
        return
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        else:
            yield from _flat(value, prefix if key == "state_dict" else f"{prefix}{key}.", depth + 1)
