"""The use case `download`: fetch the files of presets, which later runs use offline."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import AnimateDiffError
from ..jobs import job_from_options
from ..planning.jobs import spec_of
from ..planning.models import find_model, model_files


@dataclass(frozen=True)
class Fetched:
    """The local files of a preset."""

    preset: str
    files: tuple[tuple[str, Path], ...]
    """(role, path): base, vae, motion, lora, motion_lora, embedding."""


@dataclass(frozen=True)
class Missing:
    """A preset that cannot be fetched, and the reason."""

    preset: str
    error: AnimateDiffError


def run(
    presets: Sequence[str], *, variant: str | None = None, offline: bool = False
) -> Iterator[Fetched | Missing]:
    """Fetch every file that runs of each preset load, if it is not local already.

    Raises PromptFileError for an unknown preset, before anything is fetched.
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
