"""The use case `inspect`: a report for each file."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..adapters.identify import identify
from ..checkpoints.file_report import FileReport
from ..errors import AnimateDiffError


def run(files: Sequence[Path]) -> Iterator[tuple[Path, FileReport | AnimateDiffError]]:
    """Identify each file; an error of one file does not end the others."""
    for file in files:
        try:
            yield file, identify(file)
        except AnimateDiffError as error:
            yield file, error
