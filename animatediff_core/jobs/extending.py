"""`extends: OTHER.yaml`: another file's settings under a file's own."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import Problem, PromptFileError, at
from .documents import parsed
from .kinds import FileText
from .reading import place_of, unknown_keys
from .record import kinds_of
from .records import MODEL_FIELDS, Job

FILE_KEYS = (*MODEL_FIELDS, "preset", "extends", "defaults", "matrix", "jobs", "made_with")

_LONGEST_CHAIN = 50


@dataclass(frozen=True)
class Content:
    """The settings of a file and of those that it extends."""

    settings: Mapping[str, Any]
    """All of the file but its jobs."""
    jobs: tuple[tuple[str, Mapping[str, Any]], ...]
    """(where in messages, settings) of each job."""
    folders: tuple[Path, ...]
    """The file's folder, then those of the files that it extends."""
    problems: tuple[Problem, ...]
    """Problems of the files themselves."""


def extended(
    content: Mapping[str, Any], folder: Path, file: str, chain: tuple[Path, ...]
) -> Content:
    """A file's content over that of the file which it extends, own keys first.

    `file` names it in messages; `chain` has the paths of this file and of those that extend it.
    """
    own = _own(content, folder, file)
    other = content.get("extends")
    if other is None:
        return own
    try:
        with at("extends"):
            path, below = _other(other, folder, chain)
    except PromptFileError as error:
        found = tuple(replace(one, where=file) for one in error.problems)
        return replace(own, problems=own.problems + found)
    return _over(own, extended(below, path.parent, f"{file}: {path}", (*chain, path)))


def _other(other: Any, folder: Path, chain: tuple[Path, ...]) -> tuple[Path, Mapping[str, Any]]:
    """The path and content of the file that is extended."""
    if not isinstance(other, str):
        raise PromptFileError(f"must be the path of one prompt file, got {other!r}")
    path = folder / other
    if len(chain) > _LONGEST_CHAIN:
        raise PromptFileError(f"{other} is in a chain of more than {_LONGEST_CHAIN} files")
    if any(path.resolve() == one.resolve() for one in chain):
        raise PromptFileError(f"{other} leads back to itself; break the circle")
    below = parsed(read_text(path), str(path))
    if not isinstance(below, Mapping):
        raise PromptFileError(f"{path}: must be a mapping, as in our own prompt files")
    return path, below


def read_text(path: Path) -> str:
    """The text of a YAML or JSON file."""
    try:
        return path.read_text("utf-8-sig")
    except FileNotFoundError as error:
        raise PromptFileError(f"{path}: no such file; check the path") from error
    except (OSError, ValueError) as error:
        raise PromptFileError(f"{path}: cannot be read as text; name a YAML file") from error


def _own(content: Mapping[str, Any], folder: Path, file: str) -> Content:
    problems = _misplaced(content, file)
    content = FileText.all_in(content, folder)
    settings = {key: content[key] for key in (*MODEL_FIELDS, "preset", "matrix") if key in content}
    defaults, jobs = content.get("defaults"), content.get("jobs")
    if isinstance(defaults, Mapping):
        unknown = unknown_keys(defaults, kinds_of(Job), file)
        problems += [one.below("defaults") for one in unknown]
        wrong = {one.key for one in unknown}
        settings["defaults"] = {k: v for k, v in defaults.items() if str(k) not in wrong}
    elif defaults is not None:
        problems.append(Problem("must be a mapping of job settings", "defaults", file))
    if jobs is not None and not isinstance(jobs, list):
        problems.append(Problem("must be a list of at least one job", "jobs", file))
        jobs = []
    found = []
    for index, job in enumerate(jobs or []):
        job = {"prompt": job} if isinstance(job, str) else job
        if isinstance(job, Mapping):
            name = job.get("name")
            named = f' "{name}"' if isinstance(name, str) else ""
            found.append((f"{file}: jobs[{index}]{named}", job))
        else:
            problems.append(Problem("must be a mapping with a prompt", f"jobs[{index}]", file))
    return Content(settings, tuple(found), (folder,), tuple(problems))


def _misplaced(content: Mapping[str, Any], file: str) -> list[Problem]:
    """Problems of the keys of a file that do not belong on its first level."""
    places = {str(key): place_of(str(key), kinds_of(Job)) for key in content}
    flat = {
        key: place
        for key, place in places.items()
        if place and key not in FILE_KEYS and place.partition(".")[0] not in FILE_KEYS
    }
    known = dict.fromkeys((*FILE_KEYS, *flat))
    problems = unknown_keys(content, known, file)
    if flat:
        keys = ", ".join(key if key == at else f"{key} as {at}" for key, at in flat.items())
        message = f"settings of clips belong under defaults, or in a job under jobs: {keys}"
        problems.append(Problem(message, where=file))
    return problems


def _over(own: Content, other: Content) -> Content:
    """Own settings first; a preset or base model of its own replaces the other's."""
    dropped: set[str] = set()
    if "preset" in own.settings:
        dropped = set(MODEL_FIELDS)
    elif "base" in own.settings:
        dropped = {"motion", "motion_version", "variant"}
    settings = {key: value for key, value in other.settings.items() if key not in dropped}
    settings |= own.settings
    for key, joined in (
        ("defaults", Job.merged),
        ("matrix", lambda lower, upper: {**lower, **upper}),
    ):
        upper, lower = own.settings.get(key), other.settings.get(key)
        if isinstance(upper, Mapping) and isinstance(lower, Mapping):
            settings[key] = joined(lower, upper)
    jobs, folders = own.jobs or other.jobs, own.folders + other.folders
    return Content(settings, jobs, folders, own.problems + other.problems)
