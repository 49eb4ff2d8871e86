"""Prompt files to jobs, with every problem of a file told at once.

Read are our own YAML, the official AnimateDiff files, and the JSON of animatediff-cli and of its
prompt-travel fork. Precedence: command line over job over defaults over preset.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import PromptFileError
from .building import Entry, jobs_of
from .documents import parsed
from .extending import read_text
from .layers import laid_over, merged, nested
from .native import native_entries
from .official import is_oldest, official_entries, oldest_entries
from .presets import preset_settings
from .prompt_travel import is_travel_json, travel_entries
from .reader import check_path, expand, hints_of
from .records import Job
from .sampling import Window


def load_prompt_file(
    path: str | Path,
    *,
    root: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    repeats: int = 1,
) -> list[Job]:
    """Read a prompt file (`-` is standard input).

    `overrides` win over what the file says. `root` is where the paths of other programs' files
    begin. Each job is made `repeats` times, with seeds counting up. Raises PromptFileError with all
    problems of the file.
    """
    path = Path(path)
    if str(path) != "-":
        return parse_prompts(
            read_text(path), str(path), path.parent, root, overrides, repeats, source=path
        )
    where = "standard input"
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptFileError(
            f"{where}: cannot be read as text; give a YAML prompt file"
        ) from error
    return parse_prompts(text, where, Path(), root, overrides, repeats)


def parse_prompts(
    text: str,
    where: str,
    folder: Path,
    root: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    repeats: int = 1,
    *,
    source: Path | None = None,
) -> list[Job]:
    """The jobs of a prompt file's text; `where` names it, `folder` is what its paths begin at,
    `source` is the file itself, where it is one. The rest is as in `load_prompt_file`."""
    problems: list[str] = []
    said = dict(overrides or {})
    entries = _entries(parsed(text, where), where, folder, (root, source), said, problems)
    jobs = jobs_of(entries, said, repeats, problems)
    if problems:
        told = dict.fromkeys(problems)
        raise PromptFileError("\n".join(f"{where}: {problem}" for problem in told))
    return jobs


def job_from_options(options: Mapping[str, Any], repeats: int = 1) -> list[Job]:
    """Jobs from command-line options alone: `prompt`, `preset` and any key of a job."""
    problems: list[str] = []
    settings = dict(options)
    preset = settings.pop("preset", None) or (None if "base" in settings else "tiny")
    names = {"preset": preset} if preset else {}
    start = preset_settings(preset, problems) if preset else {}
    entry = Entry("", laid_over(start, settings), names=names)
    jobs = jobs_of([entry], {}, repeats, problems)
    if problems:
        raise PromptFileError("; ".join(problems))
    return jobs


def parse_settings(given: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """Settings of a job from values by dotted key (`output.fps`), and over them from texts
    KEY=VALUE, the value in YAML; all problems in one error."""
    problems: list[str] = []
    settings: dict[str, Any] = {}
    for key, value in given.items():
        settings = merged(settings, nested(key, value))
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            problems.append(f"{text}: must be KEY=VALUE, for instance output.fps=12")
            continue
        before = len(problems)
        check_path(Job, key, "", problems)
        if len(problems) == before:
            settings = merged(settings, nested(key, parsed(value, key)))
    if problems:
        raise PromptFileError("\n".join(f"--set {problem}" for problem in problems))
    return settings


def _entries(
    content: Any,
    where: str,
    folder: Path,
    places: tuple[Path | None, Path | None],
    overrides: Mapping[str, Any],
    problems: list[str],
) -> list[Entry]:
    root, source = places
    if isinstance(content, list):
        return official_entries(content, folder, root, problems)
    if not isinstance(content, Mapping):
        raise PromptFileError(f"{where}: must be a mapping with a list of jobs")
    if is_travel_json(content):
        window = expand(hints_of(Job)["window"], overrides.get("window"))
        asked = window.get("length") if isinstance(window, Mapping) else None
        lengths = (overrides.get("frames"), asked)
        usual = (Job.frames, Window.length)  # a wrong one is told later
        frames, length = (
            one if isinstance(one, int) else other
            for one, other in zip(lengths, usual, strict=True)
        )
        return travel_entries(content, folder, root, (frames, length), problems)
    if is_oldest(content):
        return oldest_entries(content, folder, root, problems)
    return native_entries(content, folder, source, problems)
