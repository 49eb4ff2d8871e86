"""Our own prompt files: preset, model, defaults, matrix and jobs, over what they extend."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .building import Entry
from .extending import Content, extended
from .layers import laid_over, merged
from .matrix import combinations, names_of, settings_of
from .presets import preset_settings
from .reader import check_keys, hints_of
from .records import MODEL_FIELDS, Job


def native_entries(
    content: Mapping[str, Any], folder: Path, source: Path | None, problems: list[str]
) -> list[Entry]:
    """Every job of the file, and of the files that it extends; `source` is the file itself."""
    whole = extended(content, folder, source, problems)
    told = whole.settings
    if not whole.jobs:
        problems.append("jobs: must be a list of at least one job")
    model = {key: value for key, value in told.items() if key in MODEL_FIELDS}
    named = told.get("preset")
    preset = named if named is not None else (None if "base" in model else "tiny")
    start = preset_settings(preset, problems) if preset is not None else {}
    if "base" in model and "motion" not in model and named is not None:
        start = laid_over(start, {"motion": None})
    below = merged(model, told.get("defaults") or {})
    entries = []
    for place, job in whole.jobs:
        entries += _entries(place, job, (start, below), preset, whole, problems)
    return entries


def _entries(
    place: str,
    job: Mapping[str, Any],
    lower: tuple[Mapping[str, Any], Mapping[str, Any]],
    preset: Any,
    whole: Content,
    problems: list[str],
) -> list[Entry]:
    """A job's combinations over the preset, and over the file's model and defaults."""
    start, below = lower
    own = {key: value for key, value in job.items() if key != "matrix"}
    check_keys(own, hints_of(Job), place, problems)
    shared, matrix = whole.settings.get("matrix"), job.get("matrix")
    if isinstance(shared, Mapping) and isinstance(matrix, Mapping):
        matrix = {**shared, **matrix}
    where = place if job.get("matrix") is not None else ""
    entries = []
    for combination in combinations(shared if matrix is None else matrix, where, problems):
        settings = merged(own, settings_of(combination))
        said = merged(below, settings)
        if "base" in settings:
            said |= {key: None for key in ("motion", "variant") if key not in settings}
        names = {**({"preset": preset} if preset is not None else {}), **names_of(combination)}
        entries.append(Entry(place, laid_over(start, said), whole.folders, names))
    return entries
