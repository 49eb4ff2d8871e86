"""Prompt files to jobs, with every problem of a file reported at once.

Formats: our own YAML, the official AnimateDiff files, and the JSON of animatediff-cli and of its
prompt-travel fork. Precedence, highest first: command line, job, defaults, preset.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import Problem, Problems, PromptFileError
from .building import Entry, jobs_of
from .documents import checked, parsed
from .extending import read_text
from .layers import laid_over
from .native import native_entries
from .official import official_entries, official_models
from .presets import preset_settings
from .prompt_travel import is_travel_json, travel_entries
from .reading import kind_of
from .record import bare, expanded, kinds_of, nested
from .records import Job


def load_prompt_file(
    path: str | Path,
    *,
    root: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    repeats: int = 1,
) -> list[Job]:
    """Read a prompt file (`-` is standard input).

    `overrides` win over the file. `root` is where the paths of other programs' files begin. Each
    job is made `repeats` times, with seeds counting up. Raises PromptFileError with all problems of
    the file.
    """
    jobs, problems = valid_jobs(path, root=root, overrides=overrides, repeats=repeats)
    problems.check()
    return jobs


def parse_prompts(
    text: str,
    file: str,
    folder: Path,
    root: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    repeats: int = 1,
) -> list[Job]:
    """The jobs of a prompt file's text; `file` names it in messages, paths begin at `folder`. The
    rest is as in `load_prompt_file`."""
    jobs, problems = _read(text, file, folder, root, overrides or {}, repeats)
    problems.check()
    return jobs


def valid_jobs(
    path: str | Path,
    *,
    text: str | None = None,
    root: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    repeats: int = 1,
) -> tuple[list[Job], Problems]:
    """The valid jobs of a prompt file, and the problems of the others, to which planning adds its
    own. `text` is the file's content if the caller has it; the rest is as in
    `load_prompt_file`."""
    path = Path(path)
    if str(path) == "-":
        text, file, folder, source = _standard_input(), "standard input", Path(), None
    else:
        file, folder, source = str(path), path.parent, None if text is not None else path
        text = read_text(path) if text is None else text
    return _read(text, file, folder, root, overrides or {}, repeats, source)


def job_from_options(options: Mapping[str, Any], repeats: int = 1) -> list[Job]:
    """Jobs from command-line options alone: `prompt`, `preset` and any key of a job."""
    settings = dict(checked(options, "options"))
    preset = settings.pop("preset", None) or (None if "base" in settings else "tiny")
    names = {"preset": preset} if preset else {}
    start = preset_settings(preset) if preset else {}
    entry = Entry("", laid_over(start, settings), names=names)
    jobs, problems = jobs_of([entry], {}, repeats)
    problems.check()
    return jobs


def parse_settings(given: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """Settings of a job from values by dotted key (`output.fps`), and over them from texts
    KEY=VALUE, the value in YAML; all problems in one error."""
    settings: dict[str, Any] = {}
    for key, value in given.items():
        settings = Job.merged(settings, nested(key, value))
    problems = Problems()
    for text in texts:
        key, equals, value = text.partition("=")
        with problems.collecting():
            if not equals or not key:
                message = "must be KEY=VALUE, for instance output.fps=12"
                raise PromptFileError([Problem(message, text)])
            settings = Job.merged(settings, nested(key, _value_of(key, value)))
    if problems.found:
        raise PromptFileError([replace(one, key=f"--set {one.key}") for one in problems.found])
    return settings


def _value_of(key: str, text: str) -> Any:
    """A value of the command line: YAML, or for a setting that is a text the text itself."""
    is_text = bare(kind_of(Job, key)) is str
    try:
        value = parsed(text, key)
    except PromptFileError:
        if is_text:
            return text
        raise
    return text if is_text and not isinstance(value, str | None) else value


def _standard_input() -> str:
    if sys.stdin is None:
        raise PromptFileError("standard input: is closed; give a prompt file")
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptFileError(
            "standard input: cannot be read as text; give a YAML prompt file"
        ) from error


def _read(
    text: str,
    file: str,
    folder: Path,
    root: Path | None,
    overrides: Mapping[str, Any],
    repeats: int,
    source: Path | None = None,
) -> tuple[list[Job], Problems]:
    content = parsed(text, file)
    if (models := official_models(content, file)) is not None:
        entries, wrong = official_entries(models, folder, root)
    elif not isinstance(content, Mapping):
        raise PromptFileError(f"{file}: must be a mapping with a list of jobs")
    elif is_travel_json(content):
        entries, wrong = travel_entries(content, folder, root, _lengths(overrides), file)
    else:
        entries, wrong = native_entries(content, folder, file, source)
    jobs, problems = jobs_of(entries, overrides, repeats)
    both = Problems()
    both.add(*wrong, *problems.found)
    return jobs, both


def _lengths(overrides: Mapping[str, Any]) -> tuple[int, int]:
    """Frames of the clip and of the window; a wrong value is reported later."""
    window = expanded(kinds_of(Job)["window"], overrides.get("window"))
    length = window.get("length") if isinstance(window, Mapping) else None
    frames = overrides.get("frames")
    return frames if isinstance(frames, int) else 16, length if isinstance(length, int) else 16
