"""Free names for new clips: nothing is overwritten, also if several runs write at once."""

import os
import shutil
from itertools import chain, count
from pathlib import Path

SUFFIXES = (".gif", ".mp4", ".webm", ".webp", ".apng", "", ".yaml", ".sheet.png")
"""Suffixes after a clip's stem: formats (frames are a folder), sidecar, contact sheet."""


def free_path(folder: Path, stem: str, suffix: str) -> Path:
    """A free path in `folder`: STEM.gif, STEM-2.gif, …; reserved until `release`.

    No file with another suffix has the stem, so that a clip owns its sidecar and contact sheet.
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
        if not _taken(folder, name):
            return folder / f"{name}{suffix}"
        (folder / _reservation(name)).unlink(missing_ok=True)


def planned_path(folder: Path, stem: str, suffix: str, planned: set[Path]) -> Path:
    """The path that `free_path` would give after the planned ones, to which it is added.

    Nothing is written.
    """
    for name in chain([stem], (f"{stem}-{number}" for number in count(2))):
        reserved = os.path.lexists(folder / _reservation(name)) or folder / name in planned
        if not reserved and not _taken(folder, name):
            break
    planned.add(folder / name)
    return folder / f"{name}{suffix}"


def _taken(folder: Path, name: str) -> bool:
    return any(os.path.lexists(folder / f"{name}{end}") for end in SUFFIXES)


def release(path: Path, suffix: str) -> None:
    """End the reservation of a path of `free_path`; files stay."""
    path.with_name(_reservation(path.name.removesuffix(suffix))).unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a file or a folder of frames, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _reservation(name: str) -> str:
    return f".{name}.reserved"
