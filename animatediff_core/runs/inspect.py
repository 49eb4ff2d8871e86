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
from ..jobs import load_preset
from ..planning.models import FAMILY_PRESETS


def run(files: Sequence[Path]) -> Iterator[tuple[Path, FileReport | AnimateDiffError]]:
    """Identify and check each file; an error of one file does not end the others."""
    base_of = cache(_base_of)
    for file in files:
        try:
            report = identify(file)
            check_alone(report, base_of(report.family))
            yield file, report
        except AnimateDiffError as error:
            yield file, error


def _base_of(family: str) -> BaseModel | None:
    """A base model without values of a file's (first) family; None if the package has none."""
    first = family.partition(" or ")[0].partition(",")[0] if "SD" in family else family
    source = str(load_preset(FAMILY_PRESETS[first])["base"]) if first in FAMILY_PRESETS else ""
    with torch.device("meta"):
        if first in FOLDERS:
            return family_model(first, first)
        return load_base(source) if source.startswith("bundled:") else None
