"""Settings to jobs: defaults are filled in, seeds drawn, wildcards chosen."""

import reprlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le
from pydantic import TypeAdapter, ValidationError

from ..errors import Problem, Problems, PromptFileError, at
from .kinds import NO_FLAG, local_path
from .layers import laid_over
from .naming import file_name, partly_filled
from .presets import defaults_of
from .reading import validated
from .record import expanded, kinds_of
from .records import Job
from .travel_text import split_negatives
from .wildcards import chosen


@dataclass(frozen=True)
class Entry:
    """A job of a prompt file, before its values are read."""

    where: str
    """The file and the job in messages: `p.yaml: jobs[0] "knight"`."""
    settings: Mapping[str, Any]
    folders: Sequence[Path] = (Path(),)
    """Where the files of wildcards are looked for."""
    names: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the file's name other than the job's: preset, keys of the matrix."""


def jobs_of(
    entries: Sequence[Entry], overrides: Mapping[str, Any], repeats: int
) -> tuple[list[Job], Problems]:
    """The jobs of all valid entries, `repeats` for each seed with seeds counting up; and what is
    wrong with the others."""
    jobs: list[Job] = []
    problems = Problems()
    for entry in entries:
        with problems.collecting():
            whole = replace(entry, settings=laid_over(entry.settings, overrides))
            jobs += _jobs(whole, len(jobs), repeats)
    return jobs, problems


_SHOWS = ("ip_adapters", "keyframes", "start", "animate")
"""Settings whose images say what to make, so that the prompt may be empty."""


def _jobs(entry: Entry, before: int, repeats: int) -> list[Job]:
    """The jobs of one entry, after so many others."""
    base = str(local_path(entry.settings.get("base", "")))
    settings = {**defaults_of(base), **entry.settings}
    output = expanded(kinds_of(Job)["output"], settings.get("output"))
    pattern = None
    if isinstance(output, Mapping) and isinstance(output.get("name"), str):
        pattern = output["name"]  # with fields that no job has
        settings["output"] = {key: value for key, value in output.items() if key != "name"}
    problems, seeds = Problems(), list[int]()
    with problems.collecting(entry.where):
        seeds = _seeds(settings.get("seed"), repeats)
    with problems.collecting():
        name = settings.get("name")
        template = validated(
            Job, {**settings, "seed": 0, "name": "clip" if name is None else name}, entry.where
        )
        blank = not any(text.strip() for text in template.prompt.values())
        if blank and not any(getattr(template, key) for key in _SHOWS):
            message = "must be a text, or texts by frame number, got ''"
            problems.add(Problem(message, "prompt", entry.where))
    problems.check()
    jobs: list[Job] = []
    with problems.collecting(entry.where):
        for seed in seeds:
            name = pattern and _filled(pattern, {**entry.names, "index": before + len(jobs) + 1})
            jobs.append(_job(entry, template, name, seed))
    problems.check()
    return jobs


def _job(entry: Entry, template: Job, output_name: str | None, seed: int) -> Job:
    """The job of one seed, with its wildcards chosen."""

    def texts(key: str, by_frame: Mapping[int, str]) -> dict[int, str]:
        with at(key):
            return {
                frame: chosen(text, seed, f"{key}/{frame}", entry.folders)
                for frame, text in by_frame.items()
            }

    prompt, negative = split_negatives(
        texts("prompt", template.prompt), texts("negative_prompt", template.negative_prompt)
    )
    name = template.name if entry.settings.get("name") else next(iter(prompt.values()))
    output = template.output
    job = {
        **dict(template),
        "name": file_name(name),
        "prompt": prompt,
        "negative_prompt": negative,
        "seed": seed,
        "regions": tuple(
            region.replace(prompt=texts(f"regions[{number}].prompt", region.prompt))
            for number, region in enumerate(template.regions)
        ),
        "output": output if output_name is None else output.replace(name=output_name),
    }
    return validated(Job, job).come_from(entry.where)


def _filled(pattern: str, names: Mapping[str, Any]) -> str:
    try:
        return partly_filled(pattern, names)
    except ValueError as error:
        raise PromptFileError([Problem(str(error), "output.name")]) from error


_SEED = TypeAdapter(Annotated[int, Ge(-1), Le(2**64 - 1), NO_FLAG])


def _seeds(value: Any, repeats: int) -> list[int]:
    """The seeds of a job; none, null and -1 draw one."""
    seeds: list[int] = []
    for one in value if isinstance(value, list | tuple) and value else [value]:
        try:
            first = _SEED.validate_python(-1 if one in (None, "none") else one)
        except ValidationError:
            message = f"must be -1 or a whole number up to 2**64-1, got {reprlib.repr(one)}"
            raise PromptFileError([Problem(message, "seed")]) from None
        first = secrets.randbits(32) if first == -1 else first
        seeds += [(first + i) % 2**64 for i in range(repeats)]
    return seeds
