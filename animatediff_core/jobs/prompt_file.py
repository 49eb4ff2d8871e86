"""Prompt files: YAML to jobs, with every problem of a file told at once.

Precedence: command line over job over defaults over preset.
"""

import re
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import PromptFileError
from .layers import laid_over, merged, rooted
from .official import official_entries
from .presets import defaults_of, preset_settings
from .reader import check_keys, hints_of, read_fields, without_none
from .records import MODEL_FIELDS, Job

_FILE_KEYS = (*MODEL_FIELDS, "preset", "defaults", "jobs", "made_with")


def load_prompt_file(
    path: str | Path, *, root: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> list[Job]:
    """Read a prompt file (`-` is standard input) in our form or the official list form.

    `overrides` win over what the file says. `root` is where the paths of official files begin.
    Raises PromptFileError with all problems of the file.
    """
    path = Path(path)
    if str(path) == "-":
        return parse_prompts(sys.stdin.read(), "standard input", Path(), root, overrides)
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError as error:
        raise PromptFileError(f"{path}: no such prompt file; check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise PromptFileError(f"{path}: cannot be read as text; name a YAML prompt file") from error
    return parse_prompts(text, str(path), path.parent, root, overrides)


def parse_prompts(
    text: str,
    where: str,
    folder: Path,
    root: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> list[Job]:
    """The jobs of a prompt file's text; `where` names it, `folder` is what its paths begin at."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or "it cannot be parsed"
        raise PromptFileError(f"{where}: no valid YAML{line}: {reason}") from error
    problems: list[str] = []
    if isinstance(content, list):
        entries = official_entries(content, folder, root, problems)
    elif isinstance(content, dict):
        entries = _native_entries(content, folder, problems)
    else:
        raise PromptFileError(f"{where}: must be a mapping with a list of jobs")
    jobs = [
        job
        for place, settings in entries
        for job in _jobs(laid_over(settings, overrides or {}), place, problems)
    ]
    if problems:
        raise PromptFileError("\n".join(f"{where}: {problem}" for problem in problems))
    return jobs


def job_from_options(options: Mapping[str, Any]) -> list[Job]:
    """Jobs from command-line options alone: `prompt`, `preset` and any key of a job."""
    problems: list[str] = []
    settings = dict(options)
    preset = settings.pop("preset", None) or (None if "base" in settings else "tiny")
    merged = laid_over(preset_settings(preset, problems) if preset else {}, settings)
    jobs = _jobs(merged, "", problems)
    if problems:
        raise PromptFileError("; ".join(problems))
    return jobs


def _native_entries(
    content: dict[str, Any], folder: Path, problems: list[str]
) -> list[tuple[str, dict[str, Any]]]:
    """(place, settings) of every job: preset, then the file's model, defaults and job."""
    check_keys(content, _FILE_KEYS, "", problems)
    model = {k: v for k, v in content.items() if k in MODEL_FIELDS}
    defaults = content.get("defaults") or {}
    jobs = content.get("jobs")
    if not isinstance(defaults, dict):
        problems.append("defaults: must be a mapping of job settings")
        defaults = {}
    if not isinstance(jobs, list) or not jobs:
        problems.append("jobs: must be a list of at least one job")
        jobs = []
    check_keys(defaults, hints_of(Job), "defaults.", problems)
    named = content.get("preset")
    preset = named if named is not None else (None if "base" in model else "tiny")
    start = preset_settings(preset, problems) if preset is not None else {}
    if "base" in model and "motion" not in model and named is not None:
        start = laid_over(start, {"motion": None})
    entries = []
    for index, job in enumerate(jobs):
        place = f"jobs[{index}]."
        if isinstance(job, str):
            job = {"prompt": job}
        if not isinstance(job, dict):
            problems.append(f"jobs[{index}]: must be a mapping with a prompt")
            continue
        check_keys(job, hints_of(Job), place, problems)
        below = {**rooted(model, folder), **rooted(defaults, folder)}
        said = merged(below, rooted(job, folder))
        if "base" in job:
            said |= {key: None for key in ("motion", "variant") if key not in job}
        entries.append((place, laid_over(start, said)))
    return entries


def _jobs(settings: dict[str, Any], place: str, problems: list[str]) -> list[Job]:
    """One job for each seed; problems are added, and then there are none."""
    before = len(problems)
    settings = {**defaults_of(str(settings.get("base", ""))), **settings}
    usual = {key for key, kind in hints_of(Job).items() if not without_none(kind)[1]}
    known = {
        key: value
        for key, value in settings.items()
        if key in hints_of(Job) and not (value is None and key in usual - {"prompt"})
    }
    values = read_fields(Job, known, place, problems, skip=("name", "seed"))
    name = settings.get("name")
    if name is not None and not isinstance(name, str):
        problems.append(f"{place}name: must be text, got {name!r}")
    if settings.get("prompt") is not None and not str(settings["prompt"]).strip():
        problems.append(f"{place}prompt: must be a text, or texts by frame number")
    seeds = _seeds(settings.get("seed"), f"{place}seed", problems)
    if len(problems) > before:
        return []
    frames = values.get("frames", Job.frames)
    for key in ("prompt", "negative_prompt"):
        if key in values:
            values[key] = _from_the_start(values[key], frames)
    values["name"] = _file_name(name or next(iter(values["prompt"].values())))
    try:
        return [Job(**values, seed=seed) for seed in seeds]
    except ValueError as error:
        problems.append(f"{place}{error}")
        return []


def _from_the_start(texts: Mapping[int, str], frames: int) -> dict[int, str]:
    """Texts by frame, where -1 is the last frame, -2 the one before it."""
    counted = {frame + frames if frame < 0 else frame: text for frame, text in texts.items()}
    return dict(sorted(counted.items()))


def _seeds(value: Any, where: str, problems: list[str]) -> list[int]:
    """The seeds of a job; none, null and -1 draw one."""
    seeds = []
    for one in value if isinstance(value, list | tuple) and value else [value]:
        if one is None or one == -1:
            seeds.append(secrets.randbits(32))
        elif isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 2**64:
            seeds.append(one)
        else:
            problems.append(f"{where}: must be -1 or a whole number up to 2**64-1, got {one!r}")
    return seeds


def _file_name(text: str) -> str:
    """A name that every file system takes."""
    name = re.sub(r"[^\w.-]+", "-", text.lower()).strip("-.")
    return name[:60].rstrip("-.") or "clip"
