"""What the files of other programs have in common: their base model, lists, and paths."""

from pathlib import Path
from typing import Any

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
"""The base model that they mean where they name none."""


def listed(value: Any) -> list[Any]:
    """One value as a list of one, none as an empty list."""
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def found(path: str, folder: Path, root: Path | None, inner: str = "") -> str:
    """A path of the file where it exists: beside the file, then upward, then under the root; each
    time also in the folder `inner`. Where nothing is there, as planning will name it."""
    path = path.replace("\\", "/")
    if not path or Path(path).is_absolute():
        return path
    places = [folder, *folder.absolute().parents, *([root] if root else [])]
    for place in places:
        for start in (place, place / inner):
            if (start / path).exists():
                return str(start / path)
    return str(root / inner / path) if root else f"./{path}"
