"""Atomic writes: to a temporary name beside the file, flushed to disk, renamed."""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..errors import MachineError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Context manager: yields a temporary path, which is renamed to `path` if the block succeeds.

    A full or read-only disk raises MachineError.
    """
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part{path.suffix}")
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch(exist_ok=False)  # O_EXCL: follows no link
            mode = temporary.stat().st_mode
            yield temporary
            _flush(temporary)
            temporary.chmod(mode)  # as the umask has it; safetensors writes a file of mode 600
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Context manager: yields a temporary folder, which is renamed to `path` if the block succeeds.

    A folder at `path` must be empty.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with disk_errors(path):
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.iterdir():
                _flush(file)
            if path.exists():
                path.rmdir()  # Windows renames over nothing
            os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _flush(path: Path) -> None:
    with path.open("r+b") as file:  # Windows flushes only what can be written
        os.fsync(file.fileno())


def user_cache() -> Path:
    """The folder of the user's cache for this program."""
    folder = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return Path(folder or Path.home() / ".cache") / "animatediff"


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


_REASONS = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EFBIG: "the file would be larger than the limit; raise the limit",
    errno.EACCES: "no permission to write there; grant it, close the program that has it open",
    errno.EROFS: "the disk is read-only; make it writable",
}


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Context manager: system errors while `path` is written become MachineError."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        cause = _system_error(error)
        if cause is None:
            raise
        reason = f"cannot be written ({cause.strerror or cause})"
        if cause.errno in _REASONS:
            reason = f"{_REASONS[cause.errno]}, or choose another output folder"
        raise MachineError(f"{path}: {reason}") from error


def _system_error(error: BaseException | None) -> OSError | None:
    """The OSError behind an error: safetensors only quotes it, torch chains another to it."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            return OSError(int(found[1]), os.strerror(int(found[1])))
        error = error.__cause__ or error.__context__
    return None
