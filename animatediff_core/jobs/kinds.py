"""Kinds of values that a type alone does not tell: weights by name, amounts of bytes."""

import re
from typing import Annotated, Any

SOURCE = "source"
"""Marks a text that names weights or pictures; in a prompt file it is relative to the file."""
Source = Annotated[str, SOURCE]
"""A file, a folder, a hub id or a bundled name."""

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9,
          "kib": 2**10, "mib": 2**20, "gib": 2**30}  # fmt: skip


def in_bytes(value: Any) -> Any:
    """`2MB` and the like as a number of bytes (kB is 1000, KiB 1024); other values as they are."""
    if not isinstance(value, str):
        return value
    parts = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", value)
    unit = _UNITS.get(parts[2].lower()) if parts else None
    if parts is None or unit is None:
        raise ValueError(f"must be bytes, or a size such as 500KB or 2MB, got {value!r}")
    return int(float(parts[1]) * unit)


Bytes = Annotated[int, in_bytes]
"""A number of bytes; a prompt file may say 2MB."""
