"""Names for new clips: nothing is ever overwritten, also where several runs write at once."""

import os
import shutil
from pathlib import Path

SUFFIXES = (".gif", ".mp4", ".webm", ".webp", ".apng", "", ".yaml", ".sheet.png")
"""What may stand behind a clip's stem: its formats (frames are a folder), sidecar and sheet."""


def free_path(folder: Path, stem: str, suffix: str) -> Path:
    """A path in `folder` whose stem nothing has: STEM.gif, STEM-2.gif, …; reserved until `release`.

    The stem is free as a whole, so that the sidecar and the sheet beside a clip are its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        name = stem if number == 1 else f"{stem}-{number}"
        number += 1
        try:
            os.close(os.open(folder / _reservation(name), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            continue
        if not any(os.path.lexists(folder / f"{name}{end}") for end in SUFFIXES):
            return folder / f"{name}{suffix}"
        (folder / _reservation(name)).unlink(missing_ok=True)


def release(path: Path, suffix: str) -> None:
    """Give a path of `free_path` free again; what has been written there stays."""
    path.with_name(_reservation(path.name.removesuffix(suffix))).unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a file or a folder of frames, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _reservation(name: str) -> str:
    return f".{name}.reserved"
