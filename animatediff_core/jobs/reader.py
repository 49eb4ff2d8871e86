"""Plain YAML values into typed records, driven by the records' type hints alone.

Shorthands, the same at every level: a value that is no mapping is a record's first field (`window:
12` is its length), `true` is the record as it usually is, `false` none; one value is a list of one;
for texts by frame, one text is the text from frame 0 on.
"""

import difflib
import math
import reprlib
import types
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

_NUMBERS: tuple[type, ...] = (int, float)


@lru_cache
def hints_of(record: type) -> Mapping[str, Any]:
    """The types of a record's fields, in their order."""
    hints = get_type_hints(record, include_extras=True)
    return {field.name: hints[field.name] for field in fields(record)}


def without_none(kind: Any) -> tuple[Any, bool]:
    """A field's type without None, and whether None was allowed."""
    if get_origin(kind) not in (Union, types.UnionType):
        return kind, False
    inner = [one for one in get_args(kind) if one is not type(None)]
    return inner[0], len(inner) < len(get_args(kind))


def expand(kind: Any, value: Any) -> Any:
    """One level of shorthand written out: a record as a mapping, a list as a list; and false is
    None where the field may be none."""
    kind, optional = without_none(kind)
    if is_dataclass(kind):
        if optional and value is False:
            return None
        if value is None or isinstance(value, Mapping | kind):
            return value
        return {} if value is True else {next(iter(hints_of(kind))): value}  # type: ignore[arg-type]
    if get_origin(kind) is tuple and get_args(kind)[-1] is ...:
        return value if value is None or isinstance(value, list | tuple) else [value]
    if _by_frame(kind) and value is not None and not isinstance(value, Mapping):
        return {0: value}
    return value


def read(kind: Any, value: Any, where: str, problems: list[str]) -> Any:
    """`value` as the type `kind`; None and a problem where it is no such value."""
    value = expand(kind, value)
    kind, optional = without_none(kind)
    if value is None:
        return None if optional else _wrong(kind, value, where, problems)
    if get_origin(kind) is Annotated:
        kind, meaning = get_args(kind)
        try:
            value = meaning(value) if callable(meaning) else value
        except ValueError as error:
            problems.append(f"{where}: {error}")
            return None
    if is_dataclass(kind):
        return _record(kind, value, where, problems)  # type: ignore[arg-type]
    if get_origin(kind) is tuple:
        return _tuple(kind, value, where, problems)
    if get_origin(kind) is Mapping:
        return _mapping(kind, value, where, problems)
    if kind in _NUMBERS:
        return _number(kind, value, where, problems)
    good = value in get_args(kind) if get_origin(kind) is Literal else isinstance(value, kind)
    return value if good else _wrong(kind, value, where, problems)


def read_fields(
    record: type,
    given: Mapping[str, Any],
    place: str,
    problems: list[str],
    skip: Collection[str] = (),
) -> dict[str, Any]:
    """The record's fields that stand in `given`, without those to skip; unknown keys and missing
    fields are problems, null is a field's usual value. `place` is what stands before a key in
    messages: `jobs[0].`."""
    hints = hints_of(record)
    check_keys(given, hints, place, problems)
    values = {}
    for field in fields(record):
        key, value = field.name, given.get(field.name)
        if key in skip:
            continue
        needed = field.default is MISSING and field.default_factory is MISSING
        if value is not None or (key in given and without_none(hints[key])[1]):
            values[key] = read(hints[key], value, f"{place}{key}", problems)
        elif needed:
            problems.append(f"{place}{key}: is missing")
    return values


def check_keys(given: Iterable[Any], known: Iterable[str], place: str, problems: list[str]) -> None:
    """A problem for every key that is not known, with the nearest one that is."""
    known = sorted(known)
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
            problems.append(f"{place}{key}: unknown key; {hint}")


def check_path(record: type, path: str, place: str, problems: list[str]) -> None:
    """A problem where a dotted key (`output.fps`) does not name a field."""
    first, dot, rest = path.partition(".")
    before = len(problems)
    check_keys([first], hints_of(record), place, problems)
    if not dot or len(problems) > before:
        return
    inner, _ = without_none(hints_of(record)[first])
    if is_dataclass(inner):
        check_path(inner, rest, f"{place}{first}.", problems)  # type: ignore[arg-type]
    else:
        problems.append(f"{place}{path}: unknown key; {first} has no parts")


def _record(kind: type, value: Any, where: str, problems: list[str]) -> Any:
    if isinstance(value, kind):
        return value
    before = len(problems)
    values = read_fields(kind, value, f"{where}.", problems)
    if len(problems) > before:
        return None
    try:
        return kind(**values)
    except ValueError as error:
        # the record's own sentence begins with its name
        problems.append(f"{where[: where.rfind('.') + 1]}{error}")
        return None


def _tuple(kind: Any, value: Any, where: str, problems: list[str]) -> tuple[Any, ...] | None:
    kinds = get_args(kind)
    if isinstance(value, list | tuple) and kinds[-1] is ...:
        kinds = (kinds[0],) * len(value)
    if not isinstance(value, list | tuple) or len(value) != len(kinds):
        _wrong(kind, value, where, problems)
        return None
    rows = enumerate(zip(kinds, value, strict=True))
    return tuple(read(one, item, f"{where}[{i}]", problems) for i, (one, item) in rows)


def _mapping(kind: Any, value: Any, where: str, problems: list[str]) -> dict[Any, Any] | None:
    if not isinstance(value, Mapping) or not value:
        _wrong(kind, value, where, problems)
        return None
    key_kind, item_kind = get_args(kind)
    before = len(problems)
    pairs = {}
    for key, item in value.items():
        read_key = read(key_kind, key, f"{where}, key {key!r}", problems)
        pairs[read_key] = read(item_kind, item, f"{where}[{key!r}]", problems)
    return dict(sorted(pairs.items())) if len(problems) == before else None


def _number(kind: type, value: Any, where: str, problems: list[str]) -> Any:
    number = value
    if isinstance(value, str):  # quoted; and YAML 1.1 reads 1e-4 as text
        try:
            number = int(value)
        except ValueError:
            try:
                number = float(value)
            except ValueError:
                return _wrong(kind, value, where, problems)
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        return _wrong(kind, value, where, problems)
    if kind is int and number != int(number):
        return _wrong(kind, value, where, problems)
    return kind(number)


def _wrong(kind: Any, value: Any, where: str, problems: list[str]) -> None:
    problems.append(f"{where}: must be {described(kind)}, got {reprlib.repr(value)}")


def described(kind: Any) -> str:
    """A type in words, as it stands after `must be`."""
    kind = get_args(kind)[0] if get_origin(kind) is Annotated else without_none(kind)[0]
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if kind in words:
        return words[kind]
    if get_origin(kind) is Literal:
        return " or ".join(get_args(kind))
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        if inner[-1] is ...:
            return f"a list, each item {described(inner[0])}"
        return f"a list of {len(inner)}: {', '.join(described(one) for one in inner)}"
    if _by_frame(kind):
        one, many = ("a number", "numbers") if get_args(kind)[1] is float else ("a text", "texts")
        return f"{one}, or {many} by frame number"
    if get_origin(kind) is Mapping:
        key, item = get_args(kind)
        return f"a mapping of {described(key)} to {described(item)}"
    return f"a mapping of {', '.join(hints_of(kind))}"


def _by_frame(kind: Any) -> bool:
    return get_origin(kind) is Mapping and get_args(kind)[0] is int
