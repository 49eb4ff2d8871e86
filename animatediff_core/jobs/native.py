"""Our own prompt files: preset, model, defaults, matrix and jobs, over what they extend."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import Problem, Problems
from .building import Entry
from .extending import Content, extended
from .layers import laid_over
from .matrix import combinations, names_of, settings_of
from .presets import preset_settings
from .records import MODEL_FIELDS, Job


def native_entries(
    content: Mapping[str, Any], folder: Path, file: str, path: Path | None
) -> tuple[list[Entry], list[Problem]]:
    """Every job of the file, and of the files that it extends; and what is wrong with them.

    `file` names it in messages; `path` is None for standard input.
    """
    whole = extended(content, folder, file, (path,) if path else ())
    problems = Problems()
    problems.add(*whole.problems)
    if not whole.jobs:
        problems.add(Problem("must be a list of at least one job", "jobs", file))
    settings = whole.settings
    model = {key: value for key, value in settings.items() if key in MODEL_FIELDS}
    named = settings.get("preset")
    preset = named if named is not None else (None if "base" in model else "tiny")
    start: dict[str, Any] = {}
    if preset is not None:
        with problems.collecting(file):
            start = preset_settings(preset)
    if "base" in model and "motion" not in model and named is not None:
        start = laid_over(start, {"motion": None})
    below = Job.merged(model, settings.get("defaults") or {})
    entries: list[Entry] = []
    for where, job in whole.jobs:
        with problems.collecting(where if job.get("matrix") is not None else file):
            entries += _entries(where, job, (start, below), preset, whole)
    return entries, problems.found


def _entries(
    where: str,
    job: Mapping[str, Any],
    lower: tuple[Mapping[str, Any], Mapping[str, Any]],
    preset: Any,
    whole: Content,
) -> list[Entry]:
    """A job's combinations over the preset, and over the file's model and defaults."""
    start, below = lower
    own = {key: value for key, value in job.items() if key != "matrix"}
    shared, matrix = whole.settings.get("matrix"), job.get("matrix")
    if isinstance(shared, Mapping) and isinstance(matrix, Mapping):
        matrix = {**shared, **matrix}
    entries = []
    for combination in combinations(shared if matrix is None else matrix):
        settings = Job.merged(own, settings_of(combination))
        over = Job.merged(below, settings)
        if "base" in settings:
            over |= {key: None for key in ("motion", "variant") if key not in settings}
        names = {**({"preset": preset} if preset is not None else {}), **names_of(combination)}
        entries.append(Entry(where, laid_over(start, over), whole.folders, names))
    return entries
