"""Records of settings: declared once, read from plain values with every short form.

Short forms, at every level: a value that is no mapping is a record's first field (`window: 12` is
its length), `true` is the record with its defaults, `false` is none; one value is a list of one;
null is a field's default.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core.core_schema import CoreSchema
from typing_extensions import Self

from ..errors import Problem
from .kinds import ByFrame

_LARGEST = 2**64
"""Numbers beyond it are mistakes, which arithmetic could not take."""


class MisfitError(ValueError):
    """Settings that are each valid but do not go together."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class Record(BaseModel):
    """Settings that belong together."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    def misfits(self) -> Iterator[Problem]:
        """Problems of settings that do not go together, each with its key."""
        yield from ()

    def replace(self, **changes: Any) -> Self:
        """A copy with other values, which are checked."""
        return type(self)(**{**dict(self), **changes})

    @classmethod
    def merged(cls, lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
        """Plain settings of this record, `upper` over `lower`; records in it key by key."""
        both = {**lower, **upper}
        kinds = kinds_of(cls)
        for key in lower.keys() & upper.keys() & kinds.keys():
            inner = record_in(kinds[key])
            below, above = expanded(kinds[key], lower[key]), expanded(kinds[key], upper[key])
            if inner and isinstance(below, Mapping) and isinstance(above, Mapping):
                both[key] = inner.merged(below, above)
        return both

    @model_validator(mode="before")
    @classmethod
    def _written_out(cls, value: Any) -> Any:
        value, kinds = expanded(cls, value), kinds_of(cls)
        if not isinstance(value, Mapping):
            return value
        return {
            str(key): expanded(kinds.get(key), item)
            for key, item in value.items()
            if item is not None or key not in kinds or allows_none(kinds[key])
        }

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        large = [name for name, value in self if _is_large(value)]
        problems = [Problem(f"must be at most {_LARGEST:g}", name) for name in large]
        problems += [] if problems else self.misfits()
        if problems:
            raise MisfitError(problems)
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        reference = handler(schema)
        whole = handler.resolve_ref_schema(reference)
        first = next(iter(whole["properties"].values()))
        short = {k: v for k, v in first.items() if k not in ("title", "default", "description")}
        defaults = [] if whole.get("required") else [{"const": True}]
        return {"anyOf": [reference, short, *defaults]}


def _is_large(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) > _LARGEST


@cache
def kinds_of(record: type[Record]) -> Mapping[str, Any]:
    """The types of a record's settings, in their order."""
    return {name: field.rebuild_annotation() for name, field in record.model_fields.items()}


def bare(kind: Any) -> Any:
    """A type without None and without its annotations."""
    while True:
        if get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        elif get_origin(kind) in (Union, UnionType):
            kind = next(one for one in get_args(kind) if one is not NoneType)
        else:
            return kind


def allows_none(kind: Any) -> bool:
    """Whether None is a value of a type."""
    kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    return get_origin(kind) in (Union, UnionType) and NoneType in get_args(kind)


def record_in(kind: Any) -> type[Record] | None:
    """The record that a type is, if it is one."""
    kind = bare(kind)
    return kind if isinstance(kind, type) and issubclass(kind, Record) else None


def is_list(kind: Any) -> bool:
    """Whether values of a type are lists of any length."""
    return get_origin(bare(kind)) is tuple and get_args(bare(kind))[-1] is ...


def is_key_frames(kind: Any) -> bool:
    """Whether values of a type are mappings by frame."""
    notes = (note for one in (kind, *get_args(kind)) for note in get_args(one)[1:])
    return any(isinstance(note, ByFrame) for note in notes)


def nested(path: str, value: Any) -> dict[str, Any]:
    """A dotted key as settings: `output.fps` is fps in the record output."""
    for part in reversed(path.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def expanded(kind: Any, value: Any) -> Any:
    """A value with its outermost short form written out."""
    record = record_in(kind)
    if record is not None:
        if value is False and allows_none(kind):
            return None
        if value is None or isinstance(value, Mapping | record):
            return value
        return {} if value is True else {next(iter(kinds_of(record))): value}
    if is_list(kind) and value is not None and not isinstance(value, list | tuple):
        return [value]
    return value
