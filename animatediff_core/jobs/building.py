"""Settings to jobs: what is not said is filled in, seeds are drawn, wildcards chosen."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .layers import laid_over
from .naming import file_name, partly_filled
from .presets import defaults_of
from .reader import expand, hints_of, read_fields
from .records import Job
from .sampling import Window
from .wildcards import expanded

_TEXTS = ("prompt", "negative_prompt")


@dataclass(frozen=True)
class Entry:
    """A job of a prompt file, before its values are read."""

    place: str
    """What stands before a key in messages: `jobs[0].`."""
    settings: Mapping[str, Any]
    folders: Sequence[Path] = (Path(),)
    """Where the files of wildcards are looked for."""
    names: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the file's name that are none of the job: preset, keys of the matrix."""


def jobs_of(
    entries: Sequence[Entry], overrides: Mapping[str, Any], repeats: int, problems: list[str]
) -> list[Job]:
    """The jobs of all entries, as many for each seed as `repeats`, with seeds counting up."""
    jobs: list[Job] = []
    for entry in entries:
        said = replace(entry, settings=laid_over(entry.settings, overrides))
        jobs += _jobs(said, len(jobs), repeats, problems)
    return jobs


_SHOWS = ("ip_adapters", "keyframes", "start", "animate")
"""Where a picture says what to make, there may be no words."""


def _jobs(entry: Entry, before: int, repeats: int, problems: list[str]) -> list[Job]:
    """The jobs of one entry, after so many others; where there are problems, none."""
    place, count = entry.place, len(problems)
    settings = {**defaults_of(str(entry.settings.get("base", ""))), **entry.settings}
    values = _values(settings, place, problems)
    name = settings.get("name")
    if name is not None and not isinstance(name, str):
        problems.append(f"{place}name: must be text, got {name!r}")
    told = any(t.strip() for t in (values.get("prompt") or {0: "-"}).values())
    if not told and not any(values.get(key) for key in _SHOWS):
        problems.append(f"{place}prompt: must be a text, or texts by frame number, got ''")
    seeds = _seeds(settings.get("seed"), repeats, f"{place}seed", problems)
    if len(problems) > count:
        return []
    jobs: list[Job] = []
    for seed in seeds:
        try:
            jobs.append(_job(entry, values, name, seed, before + len(jobs) + 1))
        except ValueError as error:
            problems.append(f"{place}{error}")
            break
    return jobs


def _job(entry: Entry, values: Mapping[str, Any], name: str | None, seed: int, index: int) -> Job:
    own = dict(values)

    def chosen(key: str, texts: Mapping[int, str]) -> dict[int, str]:
        try:
            return {
                frame: expanded(text, seed, f"{key}/{frame}", entry.folders)
                for frame, text in texts.items()
            }
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error

    for key in set(_TEXTS) & own.keys():
        own[key] = chosen(key, own[key])
    own["regions"] = tuple(
        replace(region, prompt=chosen(f"regions[{number}].prompt", region.prompt))
        for number, region in enumerate(own.get("regions", ()))
    )
    if "output" in own:
        filled = partly_filled(own["output"].name, {**entry.names, "index": index})
        own["output"] = replace(own["output"], name=filled)
    start = file_name(name or next(iter(own["prompt"].values())))
    return Job(**own, name=start, seed=seed)


def _values(settings: Mapping[str, Any], place: str, problems: list[str]) -> dict[str, Any]:
    """The typed values of a job's fields but name and seed."""
    known = {key: value for key, value in settings.items() if key in hints_of(Job)}
    known["window"] = _window(known.get("window"))
    values = read_fields(Job, known, place, problems, skip=("name", "seed"))
    frames = values.get("frames") or Job.frames
    for key in _TEXTS:
        if values.get(key):
            values[key] = _from_the_start(values[key], frames)
    if values.get("regions"):
        values["regions"] = tuple(
            region and replace(region, prompt=_from_the_start(region.prompt, frames))
            for region in values["regions"]
        )
    return values


def _window(said: Any) -> Any:
    """The window with what follows from the rest: a quarter of it overlaps."""
    window = expand(hints_of(Job)["window"], said)
    if not isinstance(window, Mapping):
        return window
    window = dict(window)
    if window.get("overlap") is None:
        length = window.get("length", Window.length)
        window["overlap"] = length // 4 if isinstance(length, int) else 0
    return window


def _from_the_start(by_frame: Mapping[int, str], frames: int) -> dict[int, str]:
    """The same by frame, where -1 is the last frame, -2 the one before it."""
    counted = {frame + frames if frame < 0 else frame: one for frame, one in by_frame.items()}
    return dict(sorted(counted.items()))


def _seeds(value: Any, repeats: int, where: str, problems: list[str]) -> list[int]:
    """The seeds of a job; none, null and -1 draw one."""
    seeds = []
    for one in value if isinstance(value, list | tuple) and value else [value]:
        if one is None or (one == -1 and not isinstance(one, bool)):
            first = secrets.randbits(32)
        elif isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 2**64:
            first = one
        else:
            problems.append(f"{where}: must be -1 or a whole number up to 2**64-1, got {one!r}")
            continue
        seeds += [(first + i) % 2**64 for i in range(repeats)]
    return seeds
