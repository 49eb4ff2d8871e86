"""The settings as data: options and the documentation's tables are made from it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from .reading import described
from .record import Record, bare, is_list, kinds_of, record_in


@dataclass(frozen=True)
class Setting:
    """One setting of a record, as declared."""

    key: str
    kind: Any
    """Its type, without None, range and the like."""
    is_list: bool
    type: str
    """The type and range in words."""
    default: Any
    """None if it has none, or if it is off."""
    meaning: str


def setting(record: type[Record], path: str) -> Setting:
    """The setting that a dotted key names."""
    first, _, rest = path.partition(".")
    field, kind = record.model_fields[first], kinds_of(record)[first]
    inner = record_in(kind)
    if rest and inner is not None:
        return setting(inner, rest)
    default = None if field.default is PydanticUndefined else field.default
    meaning = " ".join((field.description or "").split())
    return Setting(first, bare(kind), is_list(kind), described(kind), default, meaning)


def reference(*records: type[Record]) -> str:
    """A page in Markdown: a table of each record's settings, and of the records in it."""
    seen: set[type[Record]] = set()
    return "\n".join(["# Settings", "", *(line for one in records for line in _tables(one, seen))])


def _tables(record: type[Record], seen: set[type[Record]]) -> Iterator[str]:
    if record in seen:
        return
    seen.add(record)
    yield f"## {record.__name__}\n\n{' '.join((record.__doc__ or '').split())}\n"
    yield "| key | value | default | meaning |\n|---|---|---|---|"
    inside = []
    for key, kind in kinds_of(record).items():
        one = setting(record, key)
        value, inner = one.type, record_in(get_args(one.kind)[0] if one.is_list else kind)
        if inner is not None:
            inside.append(inner)
            link = f"[{inner.__name__}](#{inner.__name__.lower()})"
            value = f"a list of {link}" if one.is_list else link
        yield f"| `{key}` | {value} | {_default(record.model_fields[key])} | {one.meaning} |"
    yield ""
    for inner in inside:
        yield from _tables(inner, seen)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None or isinstance(field.default, Record):
        return "as its settings" if field.default_factory is None else "as described"
    if field.default is None or field.default == ():
        return "none"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return f"`{value}`"
