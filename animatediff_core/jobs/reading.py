"""Plain values into records, with every problem in plain words."""

import difflib
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import ValidationError

from ..errors import AnimateDiffError, Problem, PromptFileError
from .kinds import ByFrame
from .record import MisfitError, Record, allows_none, bare, is_list, kinds_of, record_in

R = TypeVar("R", bound=Record)
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def validated(
    record: type[R],
    values: Any,
    where: str = "",
    error: type[AnimateDiffError] = PromptFileError,
) -> R:
    """The record that plain values say; all problems in one error, `where` in front of each."""
    try:
        return record.model_validate(values)
    except ValidationError as wrong:
        raise error(list(_problems(record, wrong, where))) from None


_OTHER_NAMES = {
    "guidance_scale": "cfg cfg_scale guidance", "frames": "video_length num_frames length l",
    "steps": "num_inference_steps sampling_steps num_steps", "width": "w", "height": "h",
    "scheduler": "sampler sampler_name", "negative_prompt": "n_prompt negative neg_prompt",
    "base": "model model_path checkpoint base_model base_model_path dreambooth_path",
    "motion": "motion_module motion_module_path", "loras": "lora lora_path lora_model_path",
    "motion_loras": "motion_lora motion_module_lora_configs", "embeddings": "embedding",
    "output.fps": "frame_rate framerate", "window.length": "context_length context_frames",
    "window.overlap": "context_overlap", "window.stride": "context_stride",
    "window.schedule": "closed_loop context_schedule", "seed": "batch_size random_seed n_iter",
}  # fmt: skip
"""Settings of other programs, by ours."""
_PLACES = {name: place for place, names in _OTHER_NAMES.items() for name in names.split()}
_SHORT_LIST = 100
_ALL = "docs/settings.md has all"


def unknown_keys(given: Iterable[Any], known: Mapping[str, Any], where: str = "") -> list[Problem]:
    """A problem for every key that is not among the known ones, whose types are given."""
    return [
        Problem(_unknown(str(key), known), str(key), where) for key in given if key not in known
    ]


def place_of(key: str, known: Mapping[str, Any]) -> str:
    """Where a key belongs: itself, the setting that other programs call so, or a setting in one of
    the records; empty if nowhere."""
    other = _PLACES.get(re.sub(r"[\s-]", "_", key.lower()), "")
    if key in known or other.partition(".")[0] in known:
        return key if key in known else other
    records = {name: record_in(kind) for name, kind in known.items()}
    inside = [f"{name}.{key}" for name, one in records.items() if one and key in kinds_of(one)]
    return " or ".join(inside[:3])


def kind_of(record: type[Record], path: str) -> Any:
    """The type of the setting that a dotted key (`output.fps`) names; else PromptFileError."""
    first, dot, rest = path.partition(".")
    if problems := unknown_keys([first], kinds_of(record)):
        raise PromptFileError(problems)
    inner = record_in(kinds_of(record)[first])
    if dot and inner is None:
        raise PromptFileError([Problem(f"unknown key; {first} has no parts", path)])
    if dot and inner is not None:
        try:
            return kind_of(inner, rest)
        except PromptFileError as error:
            raise PromptFileError([one.below(first) for one in error.problems]) from None
    return kinds_of(record)[first]


def described(kind: Any) -> str:
    """A type in words, as they stand after `must be`."""
    notes = get_args(kind)[1:] if get_origin(kind) is Annotated else ()
    if allows_none(kind):
        kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
        return described(next(one for one in get_args(kind) if one is not type(None)))
    kind = bare(kind)
    if kind in _WORDS:
        return _WORDS[kind] + _range(notes)
    if get_origin(kind) is Literal:
        *most, last = map(str, get_args(kind))
        return f"{', '.join(most)} or {last}" if most else last
    if is_list(kind):
        return f"a list, each item {described(get_args(kind)[0])}"
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        return f"a list of {len(inner)}: {'; '.join(described(one) for one in inner)}"
    if get_origin(kind) is Mapping:
        key, item = get_args(kind)
        if any(isinstance(note, ByFrame) for note in notes):
            one, many = ("a number", "numbers") if bare(item) is float else ("a text", "texts")
            return f"{one}, or {many} by frame number"
        return f"a mapping of {described(key)} to {described(item)}"
    record = record_in(kind)
    return f"a mapping of {', '.join(kinds_of(record))}" if record else "a value"


def _range(notes: Sequence[Any]) -> str:
    """The range of a number, from the marks of its type."""
    low = next((note for note in notes if isinstance(note, Ge | Gt)), None)
    high = next((note.le for note in notes if isinstance(note, Le)), None)
    most = "2**64-1" if high == 2**64 - 1 else high
    if isinstance(low, Ge):
        return f" of {low.ge} or more" if high is None else f" from {low.ge} to {most}"
    above = f" above {low.gt}" if low else ""
    return above if high is None else f"{above}{' and' if above else ''} at most {most}"


def _problems(record: type[Record], error: ValidationError, where: str) -> Iterator[Problem]:
    for one in error.errors(include_url=False):
        kind, location = one["type"], one["loc"]
        cause = one.get("ctx", {}).get("error")
        if kind == "default_factory_not_called":
            continue
        if isinstance(cause, MisfitError):
            yield from (
                Problem(p.message, p.below(_key(location)).key, where) for p in cause.problems
            )
            continue
        inside_tuple = location and isinstance(location[-1], int)
        if kind == "missing" and not inside_tuple:
            yield Problem("is missing", _key(location), where)
        elif kind == "extra_forbidden":
            known = record_in(_kind_at(record, location[:-1]))
            assert known is not None
            message = _unknown(str(location[-1]), kinds_of(known), kinds_of(record))
            yield Problem(message, _key(location), where)
        elif cause is not None:
            yield Problem(str(cause), _key(location), where)
        else:
            yield _wrong(record, location, kind, one["input"], where)


def _wrong(
    record: type[Record], location: Sequence[int | str], kind: str, value: Any, where: str
) -> Problem:
    got = reprlib.repr(value)
    if location and location[-1] == "[key]":
        location, got = location[:-2], f"the key {got}"
    elif kind == "missing":  # from a list of fixed length
        location = location[:-1]
    message = f"must be {described(_kind_at(record, location))}, got {got}"
    return Problem(message, _key(location), where)


def _kind_at(record: type[Record], location: Sequence[int | str]) -> Any:
    """The type at a location in a record."""
    kind: Any = record
    for part in location:
        inner = record_in(kind)
        if inner is not None:
            kind = kinds_of(inner)[str(part)]
        elif get_origin(bare(kind)) is Mapping:
            kind = get_args(bare(kind))[1]
        else:
            assert isinstance(part, int)
            items = get_args(bare(kind))
            kind = items[0] if is_list(kind) else items[part]
    return kind


def _key(location: Sequence[int | str]) -> str:
    """A location in a record as a message writes it: `loras[0].path`."""
    parts = (f"[{one}]" if isinstance(one, int) else f".{one}" for one in location)
    return "".join(parts).removeprefix(".")


def _unknown(key: str, known: Mapping[str, Any], job: Mapping[str, Any] | None = None) -> str:
    near = place_of(key, known) or next(iter(difflib.get_close_matches(key, known, n=1)), "")
    names = ", ".join(sorted(known))
    if near:
        return f"unknown key; did you mean {near}?"
    if job and key in job:
        return f"unknown key here; {key} stands outside of this record"
    return f"unknown key; {'known are ' + names if len(names) <= _SHORT_LIST else _ALL}"
