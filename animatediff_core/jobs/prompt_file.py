"""Prompt files: YAML to jobs, with every problem of a file told at once.

Precedence: command line over job over defaults over preset.
"""

import difflib
import re
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import PromptFileError
from .official import official_entries
from .output import Output
from .presets import defaults_of, laid_over, preset_settings
from .records import Adapter, Job

_MODEL_KEYS = {"base", "variant", "motion", "motion_version", "vae", "prediction_type", "loras",
               "motion_loras", "embeddings"}  # fmt: skip
_JOB_KEYS = _MODEL_KEYS | {
    "name", "prompt", "negative_prompt", "seed", "frames", "width", "height", "steps",
    "guidance_scale", "scheduler", "betas", "output",
}  # fmt: skip
_FILE_KEYS = _MODEL_KEYS | {"preset", "defaults", "jobs", "made_with"}
_OUTPUT_KEYS = {"format", "fps", "crf"}
_NUMBERS = {"frames": int, "width": int, "height": int, "steps": int, "guidance_scale": float}
_TEXTS = ("name", "base", "motion", "motion_version", "vae", "scheduler",
          "prediction_type", "variant")  # fmt: skip


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
    _check_keys(content, _FILE_KEYS, "", problems)
    model = {k: v for k, v in content.items() if k in _MODEL_KEYS}
    defaults = content.get("defaults") or {}
    jobs = content.get("jobs")
    if not isinstance(defaults, dict):
        problems.append("defaults: must be a mapping of job settings")
        defaults = {}
    if not isinstance(jobs, list) or not jobs:
        problems.append("jobs: must be a list of at least one job")
        jobs = []
    _check_keys(defaults, _JOB_KEYS, "defaults.", problems)
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
        _check_keys(job, _JOB_KEYS, place, problems)
        said = {**_rooted(model, folder), **_rooted(defaults, folder), **_rooted(job, folder)}
        shared, own = defaults.get("output"), job.get("output")
        if isinstance(shared, dict) and isinstance(own, dict):
            said["output"] = {**shared, **own}
        if "base" in job:
            said |= {key: None for key in ("motion", "variant") if key not in job}
        entries.append((place, laid_over(start, said)))
    return entries


def _check_keys(given: dict[str, Any], known: set[str], place: str, problems: list[str]) -> None:
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(str(key), sorted(known), n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known))}"
            problems.append(f"{place}{key}: unknown key; {hint}")


def _rooted(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Paths that exist beside the file, as seen from the working folder."""

    def root(value: Any) -> Any:
        if not isinstance(value, str) or Path(value).is_absolute() or ":" in value:
            return value
        here = folder / value
        return str(here) if here.exists() or value.startswith(".") else value

    rooted = dict(settings)
    for key in ("base", "motion", "vae"):
        if key in rooted:
            rooted[key] = root(rooted[key])
    for key in ("loras", "motion_loras", "embeddings"):
        if isinstance(rooted.get(key), list):
            rooted[key] = [
                {**one, "path": root(one.get("path"))} if isinstance(one, dict) else root(one)
                for one in rooted[key]
            ]
    return rooted


def _jobs(settings: dict[str, Any], place: str, problems: list[str]) -> list[Job]:
    """One job for each seed; problems are added, and then there are none."""
    before = len(problems)
    settings = {**defaults_of(str(settings.get("base", ""))), **settings}
    values = {
        key: settings[key]
        for key in settings.keys() & _JOB_KEYS - {"seed", "output", "prompt", "negative_prompt"}
    }
    for key, kind in _NUMBERS.items():
        if key in values:
            values[key] = _number(values[key], kind, f"{place}{key}", problems)
    for key in _TEXTS:
        if values.get(key) is not None and not isinstance(values[key], str):
            problems.append(f"{place}{key}: must be text, got {values[key]!r}")
    for key in ("loras", "motion_loras"):
        if key in values:
            values[key] = _adapters(values[key], f"{place}{key}", problems)
    if values.get("betas") is not None:
        values["betas"] = _betas(values["betas"], f"{place}betas", problems)
    if "embeddings" in values:
        values["embeddings"] = _paths(values["embeddings"], f"{place}embeddings", problems)
    values["prompt"] = _prompt(settings.get("prompt"), f"{place}prompt", problems)
    negative = settings.get("negative_prompt") or ""
    values["negative_prompt"] = (
        {0: ""} if negative == "" else _prompt(negative, f"{place}negative_prompt", problems)
    )
    values["output"] = _output(settings.get("output"), place, problems)
    seeds = _seeds(settings.get("seed"), f"{place}seed", problems)
    if len(problems) > before:
        return []
    values["name"] = _file_name(values.get("name") or next(iter(values["prompt"].values())))
    try:
        return [Job(**values, seed=seed) for seed in seeds]
    except ValueError as error:
        problems.append(f"{place}{error}")
        return []


def _number(value: Any, kind: type, where: str, problems: list[str]) -> Any:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or (kind is int and value != int(value)):
        word = "a whole number" if kind is int else "a number"
        problems.append(f"{where}: must be {word}, got {value!r}")
        return None
    return kind(value)


def _adapters(value: Any, where: str, problems: list[str]) -> tuple[Adapter, ...]:
    adapters = []
    for index, one in enumerate(value if isinstance(value, list | tuple) else [value]):
        if isinstance(one, Adapter):
            adapters.append(one)
        elif isinstance(one, str):
            adapters.append(Adapter(path=one))
        elif isinstance(one, dict) and isinstance(one.get("path"), str):
            _check_keys(one, {"path", "scale"}, f"{where}[{index}].", problems)
            scale = _number(one.get("scale", 1.0), float, f"{where}[{index}].scale", problems)
            adapters.append(Adapter(path=one["path"], scale=scale))
        else:
            problems.append(f"{where}[{index}]: must be a path, or a mapping of path and scale")
    return tuple(adapters)


def _betas(value: Any, where: str, problems: list[str]) -> tuple[float, float, str] | None:
    if not isinstance(value, list | tuple) or len(value) != 3:
        problems.append(f"{where}: must be [start, end, schedule], got {value!r}")
        return None
    start, end = (_number(one, float, where, problems) for one in value[:2])
    return start, end, str(value[2])


def _paths(value: Any, where: str, problems: list[str]) -> tuple[str, ...]:
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list | tuple) or not all(isinstance(p, str) for p in paths):
        problems.append(f"{where}: must be a list of paths")
        return ()
    return tuple(paths)


def _prompt(value: Any, where: str, problems: list[str]) -> dict[int, str]:
    if isinstance(value, str) and value.strip():
        return {0: value}
    if isinstance(value, dict) and value:
        try:
            travel = {int(frame): text for frame, text in value.items()}
        except (TypeError, ValueError):
            problems.append(f"{where}: must map frame numbers to texts")
            return {}
        if all(isinstance(text, str) for text in travel.values()):
            return dict(sorted(travel.items()))
    problems.append(f"{where}: must be a text, or texts by frame number")
    return {}


def _output(value: Any, place: str, problems: list[str]) -> Output | None:
    if value is None:
        return Output()
    if isinstance(value, Output):
        return value
    if not isinstance(value, dict):
        problems.append(f"{place}output: must be a mapping of format, fps and crf")
        return None
    _check_keys(value, _OUTPUT_KEYS, f"{place}output.", problems)
    if value.keys() - _OUTPUT_KEYS:
        return None
    given = dict(value)
    for key, kind in (("fps", float), ("crf", int)):
        if key in given:
            given[key] = _number(given[key], kind, f"{place}output.{key}", problems)
    if None in given.values():
        return None
    try:
        return Output(**given)
    except (ValueError, TypeError) as error:
        problems.append(f"{place}{error}")
        return None


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
