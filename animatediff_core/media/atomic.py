"""Files that are whole or not there: written beside, flushed to disk, renamed."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..errors import SurroundingsError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to; it takes the final name only if all went well.

    A full or read-only disk becomes a SurroundingsError that names the file.
    """
    beside = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield beside
            with beside.open("rb") as file:
                os.fsync(file.fileno())
            beside.chmod(0o644)
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """The same for a new folder: it is there with everything in it, or it is not there.

    A folder of that name must not be there yet, unless it is empty.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with explained(path):
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            yield beside
            for written in beside.iterdir():
                with written.open("rb") as file:
                    os.fsync(file.fileno())
            os.rename(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file or none."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """What the system refuses while `path` is written becomes a SurroundingsError that names it."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        cause = _refusal(error)
        if cause is None:
            raise
        reasons = {
            errno.ENOSPC: "the disk is full; free some space",
            errno.EDQUOT: "the disk quota is used up; free some space",
            errno.EFBIG: "it would be larger than a file may be there; raise the limit",
            errno.EACCES: "no permission to write there; grant it",
            errno.EROFS: "the disk is read-only; make it writable",
        }
        if cause.errno in reasons:
            why = f"{reasons[cause.errno]}, or choose another output folder"
        else:
            why = f"cannot be written ({cause.strerror or cause})"
        raise SurroundingsError(f"{path}: {why}") from error


def _refusal(error: BaseException | None) -> OSError | None:
    """The system's own error, or what led to a library's: safetensors has it in words, torch
    raises another while it closes the file."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            return OSError(int(found[1]), os.strerror(int(found[1])))
        error = error.__cause__ or error.__context__
    return None
