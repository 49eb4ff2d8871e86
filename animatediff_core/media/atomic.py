"""Files that are whole or not there: written beside, flushed to disk, renamed."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import SurroundingsError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to; it takes the final name only if all went well.

    A full or read-only disk becomes a SurroundingsError that names the file.
    """
    beside = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.chmod(0o644)
        os.replace(beside, path)
    except OSError as error:
        raise _explained(error, path) from error
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """The same for a new folder: it is there with everything in it, or it is not there.

    A folder of that name must not be there yet, unless it is empty.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        yield beside
        for written in beside.iterdir():
            with written.open("rb") as file:
                os.fsync(file.fileno())
        os.rename(beside, path)
    except OSError as error:
        raise _explained(error, path) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file or none."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def _explained(error: OSError, path: Path) -> SurroundingsError:
    reasons = {
        errno.ENOSPC: "the disk is full; free some space or choose another output folder",
        errno.EDQUOT: "the disk quota is used up; free some space or choose another output folder",
        errno.EACCES: "no permission to write there; choose another output folder",
        errno.EROFS: "the disk is read-only; choose another output folder",
    }
    return SurroundingsError(f"{path}: {reasons.get(error.errno or 0, str(error))}")
