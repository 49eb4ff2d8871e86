"""Types of settings: numbers with a range, values by frame, names of files, sizes of files."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Gt, Le
from pydantic import (
    AfterValidator,
    BeforeValidator,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Strict,
)
from pydantic import PlainSerializer as WrittenAs
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import PydanticCustomError
from pydantic_core.core_schema import CoreSchema, no_info_before_validator_function

Value = TypeVar("Value")


def _number(value: Any) -> Any:
    """The value itself; true and false are no numbers."""
    if isinstance(value, bool):
        raise PydanticCustomError("number", "must be a number")
    return value


NO_FLAG = BeforeValidator(_number)
"""Rejects true and false where a number is due. It follows the number's range."""
Whole = Annotated[int, NO_FLAG]
Number = Annotated[float, NO_FLAG]
Flag = Annotated[bool, Strict()]
Index = Annotated[int, Ge(0), NO_FLAG]
Count = Annotated[int, Ge(1), NO_FLAG]
Seed = Annotated[int, Ge(0), Le(2**64 - 1), NO_FLAG]
Strength = Annotated[float, Ge(0), NO_FLAG]
Positive = Annotated[float, Gt(0), NO_FLAG]
Share = Annotated[float, Ge(0), Le(1), NO_FLAG]
ShareOfSteps = Annotated[float, Gt(0), Le(1), NO_FLAG]
"""A share of the steps that runs; the nearest whole step counts, and at least one runs."""


class FileText(str):
    """A text of a prompt file. It knows the folder that paths in it are relative to."""

    folder: Path

    @classmethod
    def all_in(cls, value: Any, folder: Path) -> Any:
        """Plain values with each of their texts as one of a file in `folder`."""
        if isinstance(value, Mapping):
            return {key: cls.all_in(item, folder) for key, item in value.items()}
        if isinstance(value, list):
            return [cls.all_in(item, folder) for item in value]
        if not isinstance(value, str) or isinstance(value, cls):
            return value
        text = cls(value)
        text.folder = folder
        return text


def beside_file(value: Any) -> Any:
    """A file's text as a path from the working folder."""
    return str(value.folder / value) if isinstance(value, FileText) else value


LocalPath = Annotated[str, BeforeValidator(beside_file)]
"""A file or folder; in a file of settings relative to it."""


def local_path(value: Any) -> Any:
    """A file's text as a path from the working folder, if it exists beside the file."""
    if not isinstance(value, FileText):
        return value
    if Path(value).is_absolute() or ":" in value or value.folder == Path():
        return str(value)
    beside = value.folder / value
    return str(beside) if os.path.exists(beside) or value.startswith(".") else str(value)


def _absolute(name: str) -> str:
    return os.path.abspath(name) if os.path.exists(name) else name


Source = Annotated[str, BeforeValidator(local_path), WrittenAs(_absolute)]
"""A file, a folder, a hub id or a bundled name; in a prompt file relative to the file."""

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9,
          "kib": 2**10, "mib": 2**20, "gib": 2**30}  # fmt: skip


def in_bytes(value: Any) -> Any:
    """`2MB` and the like as a number of bytes (kB is 1000, KiB 1024); other values as they are."""
    if not isinstance(value, str):
        return _number(value)
    parts = re.fullmatch(r"\s*([0-9]{0,15}\.?[0-9]{1,15})\s*([A-Za-z]*)\s*", value)
    unit = _UNITS.get(parts[2].lower()) if parts else None
    if parts is None or unit is None:
        raise ValueError(f"must be bytes, or a size such as 500KB or 2MB, got {value!r}")
    return int(float(parts[1]) * unit)


Bytes = Annotated[int, Ge(1000), BeforeValidator(in_bytes, json_schema_input_type=int | str)]
"""A size of a file, 1 kB or more; a prompt file may say 2MB."""


def only(*values: Any, hint: str = "") -> AfterValidator:
    """A setting of another program of which these values alone mean what is done here."""

    def check(value: Any) -> Any:
        if value not in values:
            works = " or ".join(map(str, values))
            raise ValueError(f"{value!r} is not supported; {hint and hint + '; '}{works} is")
        return value

    return AfterValidator(check)


def _empty(value: Any) -> Any:
    if value:
        raise ValueError("is not supported; remove it")
    return value


Empty = Annotated[Any, AfterValidator(_empty)]
"""A setting of another program that must have no value."""


class ByFrame:
    """Marks a mapping of frame numbers to values; one value alone is that of frame 0."""

    def __get_pydantic_core_schema__(self, kind: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_before_validator_function(_by_frame, handler(kind))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        alone = handler(schema)["additionalProperties"]
        frames = {
            "type": "object",
            "patternProperties": {r"^-?\d+$": alone},
            "additionalProperties": False,
            "minProperties": 1,
        }
        return {"anyOf": [alone, frames]}


def _by_frame(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return {0: value}
    if not value:
        raise PydanticCustomError("empty", "must not be empty")
    frames: dict[Any, Any] = {}
    written: dict[Any, Any] = {}
    for key, item in value.items():
        digits = isinstance(key, str) and re.fullmatch(r"-?\d+", key)
        frame = int(key) if digits else key
        if frame in frames:
            raise ValueError(f"names frame {frame} twice: as {written[frame]!r} and as {key!r}")
        frames[frame], written[frame] = item, key
    return frames


KeyFrames = Annotated[Mapping[Whole, Value], ByFrame()]
"""Values at some frames. A job has them counted from its start and in order; -1 is the last frame.
Before the first and after the last key frame a value holds; between them, it is interpolated."""


def from_start(values: Mapping[int, Value], frames: int) -> dict[int, Value]:
    """Key frames of a clip with so many frames, counted from its start and in order.

    Raises ValueError if the clip has no such frame, or if two keys are the same frame.
    """
    counted: dict[int, Value] = {}
    written: dict[int, int] = {}
    for key, value in values.items():
        if not -frames <= key < frames:
            raise ValueError(f"names frame {key}, but the clip has {frames}; the last is -1")
        frame = key % frames
        if frame in counted:
            raise ValueError(f"names frame {frame} twice: as {written[frame]} and as {key}")
        counted[frame], written[frame] = value, key
    return dict(sorted(counted.items()))
