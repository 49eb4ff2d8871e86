"""Layers of settings: what a preset, a file's defaults, a job and the command line say together."""

from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from .kinds import SOURCE
from .output import Output
from .reader import expand, hints_of, without_none
from .records import Job

_OF_MODULE = ("motion_version", "betas")
"""Settings that belong to the motion module they stand with, and to no other."""
_OF_FORMAT = ("codec", "crf", "quality", "dither")
"""Settings that belong to the output format they stand with."""


def nested(path: str, value: Any) -> dict[str, Any]:
    """A dotted key as settings: `output.fps` is fps in the record output."""
    for part in reversed(path.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def laid_over(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Both layers' settings of a job, the upper's first. Where it names another motion module or
    base model, what belonged to the lower one's goes with it."""
    if "motion" in upper and upper["motion"] != lower.get("motion"):
        lower = {key: value for key, value in lower.items() if key not in _OF_MODULE}
    if "base" in upper and upper["base"] != lower.get("base"):
        lower = {key: value for key, value in lower.items() if key != "variant"}
    return merged(lower, upper)


def merged(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Both mappings' settings of a job, the upper's first; records (output, window, ...) key by
    key."""
    both = {**lower, **upper}
    for key, kind in hints_of(Job).items():
        if key in lower and key in upper and is_dataclass(without_none(kind)[0]):
            below, above = expand(kind, lower[key]), expand(kind, upper[key])
            if isinstance(below, Mapping) and isinstance(above, Mapping):
                if "format" in above and above["format"] != below.get("format", Output.format):
                    below = {k: v for k, v in below.items() if k not in _OF_FORMAT}
                both[key] = {**below, **above}
    return both


def rooted(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The settings with paths that exist beside the file as seen from the working folder."""

    def root(name: str) -> str:
        if Path(name).is_absolute() or ":" in name or folder == Path():
            return name
        here = folder / name
        return str(here) if here.exists() or name.startswith(".") else name

    return with_sources(settings, root)


def with_sources(settings: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """The settings of a job with every name of weights or pictures changed."""
    hints = hints_of(Job)
    return {
        key: _changed(hints[key], value, change) if key in hints else value
        for key, value in settings.items()
    }


def _changed(kind: Any, value: Any, change: Callable[[str], str]) -> Any:
    value = expand(kind, value)
    kind, _ = without_none(kind)
    if get_origin(kind) is Annotated:
        is_source = get_args(kind)[1] == SOURCE and isinstance(value, str)
        return change(value) if is_source else value
    if get_origin(kind) is tuple and get_args(kind)[-1] is ...:
        return value and [_changed(get_args(kind)[0], item, change) for item in value]
    if get_origin(kind) is Mapping and isinstance(value, Mapping):
        return {key: _changed(get_args(kind)[1], one, change) for key, one in value.items()}
    if is_dataclass(kind) and isinstance(value, Mapping):
        hints = hints_of(kind)  # type: ignore[arg-type]
        return {
            key: _changed(hints[key], one, change) if key in hints else one
            for key, one in value.items()
        }
    return value
