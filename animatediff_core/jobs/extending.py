"""`extends: OTHER.yaml`: another file's settings under a file's own."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import PromptFileError
from .documents import parsed
from .layers import merged, rooted
from .reader import check_keys, hints_of
from .records import MODEL_FIELDS, Job

FILE_KEYS = (*MODEL_FIELDS, "preset", "extends", "defaults", "matrix", "jobs", "made_with")


@dataclass(frozen=True)
class Content:
    """What a file says, its paths as seen from the working folder."""

    settings: Mapping[str, Any]
    """All of the file but its jobs."""
    jobs: tuple[tuple[str, Mapping[str, Any]], ...]
    """(place in messages, settings) of each job."""
    folders: tuple[Path, ...]
    """The file's folder, then those of the files that it extends."""


def extended(
    content: Mapping[str, Any],
    folder: Path,
    source: Path | None,
    problems: list[str],
    below: tuple[Path, ...] = (),
) -> Content:
    """A file's content over that of the file which it extends, own keys first; `below` are the
    files that led here."""
    place = f"{source}: " if below else ""
    own = _own(content, folder, place, problems)
    other = content.get("extends")
    if other is None:
        return own
    if not isinstance(other, str):
        problems.append(f"{place}extends: must be the path of one prompt file, got {other!r}")
        return own
    path = folder / other
    chain = (*below, *([source] if source else []))
    if any(path.resolve() == one.resolve() for one in chain):
        problems.append(f"{place}extends: {other} leads back to itself; break the circle")
        return own
    try:
        under = parsed(read_text(path), str(path))
    except PromptFileError as error:
        problems.append(f"{place}extends: {error}")
        return own
    if not isinstance(under, Mapping):
        problems.append(f"{place}extends: {path}: must be a mapping, as in our own prompt files")
        return own
    return _over(own, extended(under, path.parent, path, problems, chain))


def read_text(path: Path) -> str:
    """The text of a prompt file."""
    try:
        return path.read_text("utf-8-sig")
    except FileNotFoundError as error:
        raise PromptFileError(f"{path}: no such prompt file; check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise PromptFileError(f"{path}: cannot be read as text; name a YAML prompt file") from error


def _own(content: Mapping[str, Any], folder: Path, place: str, problems: list[str]) -> Content:
    check_keys(content, FILE_KEYS, place, problems)
    settings = rooted({k: v for k, v in content.items() if k in MODEL_FIELDS}, folder)
    settings |= {k: content[k] for k in ("preset", "matrix") if k in content}
    defaults = content.get("defaults")
    if isinstance(defaults, Mapping):
        check_keys(defaults, hints_of(Job), f"{place}defaults.", problems)
        settings["defaults"] = rooted(defaults, folder)
    elif defaults is not None:
        problems.append(f"{place}defaults: must be a mapping of job settings")
    if isinstance(content.get("matrix"), Mapping):
        settings["matrix"] = _rooted_matrix(content["matrix"], folder)
    given, jobs = content.get("jobs"), []
    if given is not None and not isinstance(given, list):
        problems.append(f"{place}jobs: must be a list of at least one job")
        given = []
    for index, job in enumerate(given or []):
        job = {"prompt": job} if isinstance(job, str) else job
        if not isinstance(job, Mapping):
            problems.append(f"{place}jobs[{index}]: must be a mapping with a prompt")
            continue
        said = rooted(job, folder)
        if isinstance(job.get("matrix"), Mapping):
            said["matrix"] = _rooted_matrix(job["matrix"], folder)
        jobs.append((f"{place}jobs[{index}].", said))
    return Content(settings, tuple(jobs), (folder,))


def _rooted_matrix(matrix: Mapping[Any, Any], folder: Path) -> dict[Any, Any]:
    return {
        key: [rooted({key: value}, folder)[key] for value in values]
        if isinstance(values, list)
        else values
        for key, values in matrix.items()
    }


def _over(own: Content, other: Content) -> Content:
    """Own settings first; a preset or base model of its own takes the place of the other's."""
    gone: set[str] = set()
    if "preset" in own.settings:
        gone = set(MODEL_FIELDS)
    elif "base" in own.settings:
        gone = {"motion", "motion_version", "variant"}
    settings = {key: value for key, value in other.settings.items() if key not in gone}
    settings |= own.settings
    for key, joined in (("defaults", merged), ("matrix", lambda lower, upper: {**lower, **upper})):
        mine, theirs = own.settings.get(key), other.settings.get(key)
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            settings[key] = joined(theirs, mine)
    return Content(settings, own.jobs or other.jobs, own.folders + other.folders)
