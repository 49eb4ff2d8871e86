"""The use case `download`: fetch once what later runs use offline."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import AnimateDiffError
from ..jobs import job_from_options
from .generate import parts_of
from .model import find


def run(
    presets: Sequence[str], *, offline: bool = False
) -> Iterator[tuple[str, tuple[Path, Path] | AnimateDiffError]]:
    """(preset, base and motion module on this machine), or why it cannot be had.

    Raises PromptFileError where a preset does not exist, before anything is fetched.
    """
    jobs = {name: job_from_options({"preset": name, "prompt": name})[0] for name in presets}
    for name, job in jobs.items():
        try:
            found = find(parts_of(job), offline=offline)
        except AnimateDiffError as error:
            yield name, error
        else:
            yield name, (found.base, found.motion)
