"""The use case `download`: fetch once what later runs use offline."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import AnimateDiffError
from ..jobs import job_from_options
from ..planning.jobs import spec_of
from ..planning.models import find_model, model_files


@dataclass(frozen=True)
class Fetched:
    """What a preset needs, on this machine."""

    preset: str
    files: tuple[tuple[str, Path], ...]
    """(role, path): base, vae, motion, lora, motion_lora, embedding."""


@dataclass(frozen=True)
class Missing:
    """A preset that cannot be had, and why."""

    preset: str
    error: AnimateDiffError


def run(
    presets: Sequence[str], *, variant: str | None = None, offline: bool = False
) -> Iterator[Fetched | Missing]:
    """Fetch all that runs of each preset load; what is here already is not fetched again.

    Raises PromptFileError where a preset does not exist, before anything is fetched.
    """
    options = {} if variant is None else {"variant": variant}
    jobs = {
        name: job_from_options({"preset": name, "prompt": name, **options})[0] for name in presets
    }
    for name, job in jobs.items():
        try:
            found = find_model(spec_of(job), offline=offline)
            files = tuple((role, path) for role, path, _ in model_files(found, offline=offline))
        except AnimateDiffError as error:
            yield Missing(name, error)
        else:
            yield Fetched(name, files)
