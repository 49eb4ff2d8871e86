"""The use case `inspect`: a report for each file, checked as `generate` checks it."""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import torch

from ..adapters.fit import check_alone
from ..adapters.identify import identify
from ..checkpoints.base_model import BaseModel
from ..checkpoints.families import FOLDERS
from ..checkpoints.file_report import FileReport
from ..checkpoints.loading import load_base
from ..checkpoints.single_file import family_model
from ..errors import AnimateDiffError
from ..jobs import load_preset, valid_jobs
from ..media.settings import is_clip, settings_of
from ..planning.models import FAMILY_PRESETS

PROMPT_FILES = (".yaml", ".yml", ".json")


def run(files: Sequence[Path]) -> Iterator[tuple[Path, FileReport | AnimateDiffError]]:
    """Identify and check each file; an error of one file does not end the others."""
    base_of = cache(_base_of)
    for file in files:
        try:
            if is_clip(file) or file.suffix.lower() in PROMPT_FILES:
                yield file, _report_jobs(file)
                continue
            report = identify(file)
            check_alone(report, base_of(report.family))
            yield file, report
        except AnimateDiffError as error:
            yield file, error


def _report_jobs(file: Path) -> FileReport:
    """The report of a clip or a prompt file: its jobs, and what made a clip."""
    path, text = settings_of(file) if is_clip(file) else (file, None)
    jobs, problems = valid_jobs(path, text=text)
    problems.check()
    job = jobs[0]
    details = {
        "jobs": str(len(jobs)),
        "prompt": next(iter(job.prompt.values()))[:60],
        "seed": str(job.seed),
        "frames": f"{job.frames} of {job.width} x {job.height}",
        "base": ", ".join(sorted({one.base for one in jobs})),
        "motion": ", ".join(sorted({one.motion or "the base model's" for one in jobs})),
    }
    if loras := [f"{one.path}:{one.scale:g}" for one in (*job.loras, *job.motion_loras)]:
        details["loras"] = ", ".join(loras)
    kind = "clip" if is_clip(file) else "prompt file"
    if kind == "prompt file" and len(jobs) > 1:
        details = {key: details[key] for key in ("jobs", "base", "motion")}
    return FileReport(path=file, kind=kind, goes_in="generate", details=details)


def _base_of(family: str) -> BaseModel | None:
    """A base model without values of a file's (first) family; None if the package has none."""
    first = family.partition(" or ")[0].partition(",")[0] if "SD" in family else family
    source = str(load_preset(FAMILY_PRESETS[first])["base"]) if first in FAMILY_PRESETS else ""
    with torch.device("meta"):
        if first in FOLDERS:
            return family_model(first, first)
        return load_base(source) if source.startswith("bundled:") else None
