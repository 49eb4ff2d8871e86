"""Names of clips' files, from a template such as `{name}-{seed}`."""

import re
from collections.abc import Mapping
from typing import Any

from .record import Record, kinds_of

_FIELD = re.compile(r"\{([^{}:]*)(?::(0[1-9]\d?))?\}")
_RESERVED = re.compile("con|prn|aux|nul|conin[$]|conout[$]|(com|lpt)[0-9¹²³]", re.IGNORECASE)
"""Names of devices on Windows, whatever their ending."""
_LONGEST = 180
"""Bytes of a part of a name; file systems take 255, and an ending and a number follow."""


def file_name(text: str) -> str:
    """A name that every file system takes."""
    name = re.sub(r"[^\w.-]+", "-", text.lower()).strip("-.")
    return name[:60].rstrip("-.") or "clip"


def output_name(job: Any) -> str:
    """Where a job's clip goes: relative to the output folder, with `/`, without its ending.

    The template may name every field of the job that is one text or number, also dotted
    (`{output.fps}`), and whole numbers may be filled up with zeros (`{seed:05}`). Raises
    ValueError for another field, and for a path that leaves the folder.
    """
    template = job.output.name
    path = _FIELD.sub(lambda match: _written(match, _value(job, match[1])), template)
    if "{" in path or "}" in path:
        raise ValueError(f"has a brace too much: {template!r}")
    parts = [part.encode()[:_LONGEST].decode(errors="ignore") for part in path.split("/")]
    if not all(_is_plain(part) for part in parts):
        raise ValueError(
            "must be a path inside the output folder, such as {name}-{seed}, without names that "
            f"Windows rejects (CON, NUL, a dot or space at the end), got {path!r}"
        )
    return "/".join(parts)


def partly_filled(template: str, values: Mapping[str, Any]) -> str:
    """The template with the fields filled that have a value here; the others stay."""

    def fill(match: re.Match[str]) -> str:
        return _written(match, values[match[1]]) if match[1] in values else match[0]

    return _FIELD.sub(fill, template)


def _written(match: re.Match[str], value: Any) -> str:
    if not match[2]:
        return file_name(str(value))
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{match[0]} fills up a whole number, got {value!r}")
    return f"{value:{match[2]}}"


def _value(job: Any, key: str) -> Any:
    value = job
    for part in key.split("."):
        if not isinstance(value, Record) or part not in kinds_of(type(value)):
            raise ValueError(
                f"unknown field {{{key}}}; there are {{name}}, {{seed}}, {{prompt}}, "
                "{preset}, {index}, the keys of the matrix and all fields of a job"
            )
        value = getattr(value, part)
    if key in ("prompt", "negative_prompt"):
        value = next(iter(value.values()))
    if isinstance(value, Record | Mapping | tuple):
        raise ValueError(f"{{{key}}} is not one text or number")
    return value


def _is_plain(part: str) -> bool:
    return (
        bool(part.strip("-. "))
        and part[0] != "."
        and part[-1] not in ". "
        and not _RESERVED.fullmatch(part.partition(".")[0].rstrip())
        and part.isprintable()
        and not set(part) & set('\\:*?"<>|')
    )
