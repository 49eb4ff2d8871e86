"""Base model and paths of the files of other programs."""

import os
from pathlib import Path

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
"""The base models that they mean if they name none."""


def found(path: str, folder: Path, root: Path | None, inner: str = "") -> str:
    """A path of the file where it exists: beside the file, then in the folders above, then under
    the root; each time also in the folder `inner`. If it is nowhere, as planning will name it."""
    path = path.replace("\\", "/")
    if not path or path.startswith("bundled:") or Path(path).is_absolute():
        return path
    folders = [folder, *folder.absolute().parents, *([root] if root else [])]
    for one in folders:
        for start in (one, one / inner):
            if os.path.exists(start / path):  # False for a name that is too long, too
                return str(start / path)
    return str(root / inner / path) if root else f"./{path}"
