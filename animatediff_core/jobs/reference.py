"""The settings as data: options and the documentation's tables are made from it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

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


def reference(record: type[Record]) -> str:
    """A table of a record's settings in Markdown, followed by one of each record in it."""
    return "\n".join(_tables(record, set()))


def _tables(record: type[Record], seen: set[type[Record]]) -> Iterator[str]:
    if record in seen:
        return
    seen.add(record)
    yield f"## {record.__name__}\n\n{' '.join((record.__doc__ or '').split())}\n"
    yield "| key | value | default | meaning |\n|---|---|---|---|"
    inner = []
    for key, kind in kinds_of(record).items():
        one = setting(record, key)
        found = record_in(get_args(one.kind)[0]) if one.is_list else record_in(kind)
        value = one.type
        if found is not None:
            inner.append(found)
            value = (
                f"{'list of ' if one.is_list else ''}[{found.__name__}](#{found.__name__.lower()})"
            )
        yield f"| `{key}` | {value} | {_default(record, key)} | {one.meaning} |"
    yield ""
    for found in inner:
        yield from _tables(found, seen)


def _default(record: type[Record], key: str) -> str:
    field = record.model_fields[key]
    if field.default_factory is not None:
        return "see meaning"
    if field.is_required():
        return "required"
    if field.default is None or field.default == ():
        return "none"
    if isinstance(field.default, Record):
        return "its defaults"
    return f"`{field.default}`"
