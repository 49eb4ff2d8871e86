"""Where the files of a model are: the local path of a role's source.

A source is `bundled:…`, a local file or folder, or an id on the hub, from which only the files
that are used are fetched.
"""

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Literal

from ..errors import CheckpointError
from .folder import adapter_files, base_layout, encoder_files, vae_layout
from .hub import fetch, fetch_file, hub_id

BUNDLED = "bundled:"
MODELS = Path(__file__).parent.parent / "models"
Role = Literal["base", "vae", "motion", "control", "image encoder", "file"]
"""What a source is for. `file` is a weight file, whatever is in it."""
_CHOICES: dict[Role, Callable[[Collection[str], str, str | None, str], Sequence[str]]] = {
    "base": lambda names, source, variant, _: base_layout(names, variant, source).files,
    "vae": lambda names, source, *_: vae_layout(names, source).files,
    "motion": lambda names, source, *_: adapter_files(names, source),
    "control": lambda names, source, *_: adapter_files(names, source),
    "image encoder": lambda names, source, _, folder: encoder_files(names, source, folder),
}
"""The files of a repository that each role reads: (names, source, variant, folder) -> names."""
_SUFFIXES = {".safetensors", ".ckpt", ".pt", ".pth", ".bin"}


def local_path(
    source: str, role: Role = "file", *, variant: str | None = None, offline: bool = False
) -> Path:
    """The local file or folder of a source, fetched from the hub if it is not here.

    `variant` names which weights of a base model's folder: fp16, for instance.
    """
    named = bundled_path(source)
    path = Path(named).expanduser()
    exists, wanted = os.path.exists(path), hub_id(named)
    if not exists and (looks_local(named) or wanted is None or not _reads(role, wanted.path)):
        raise _missing(source, role)
    if variant is not None:
        kind = "a bundled model" if named != source else "a single file"
        if named != source or (path.is_file() if exists else wanted and wanted.path):
            raise CheckpointError(
                f"{source}: is {kind}, which has no variants; leave variant {variant} out"
            )
    if exists or wanted is None:
        return _inside(path, source, role)
    if wanted.path is not None and role != "image encoder":
        return fetch_file(named, offline=offline)
    choose, folder = _CHOICES[role], wanted.path or ""
    fetched = fetch(named, lambda n: choose(n, source, variant, folder), offline=offline)
    return _inside(fetched / folder, source, role)


def bundled_path(source: str) -> str:
    """`bundled:NAME/REST` -> a path inside the package; anything else unchanged."""
    if not source.startswith(BUNDLED):
        return source
    path = MODELS / source.removeprefix(BUNDLED)
    if not path.exists():
        names = ", ".join(sorted(p.name for p in MODELS.iterdir() if (p / "base").is_dir()))
        raise CheckpointError(f"{source}: no such bundled model; there is {names or 'none'}")
    return str(path)


def looks_local(source: str) -> bool:
    """Whether a name means a file or folder here rather than a hub id.

    It does if it exists, begins with / . or ~, begins with a folder that exists, or does not have
    the form of a hub id (hub.py). FOLDER/FILE.safetensors is a file here.
    """
    path = Path(source).expanduser()
    if os.path.exists(path) or path.is_absolute() or source.startswith((".", "~")):
        return True
    if "/" in source and Path(path.parts[0]).is_dir():
        return True
    wanted = hub_id(source)
    return wanted is None or (wanted.path is None and path.suffix in _SUFFIXES)


def _reads(role: Role, path: str | None) -> bool:
    """Whether a role can read what a hub id names: a file, or a whole repository."""
    return path is not None or role in _CHOICES


def _inside(path: Path, source: str, role: Role) -> Path:
    """The role's own folder in a larger model's."""
    if role == "base" and path.is_dir() and not (path / "unet").is_dir():
        return path / "base" if (path / "base" / "unet").is_dir() else path
    if role == "vae" and (path / "vae" / "config.json").is_file():
        return path / "vae"
    if role == "image encoder" and not (path / "config.json").is_file():
        raise _missing(source, role)
    return path


def _missing(source: str, role: Role) -> CheckpointError:
    if role == "base":
        return CheckpointError(f"{source}: no such base model; check the path, or name a hub id")
    if role == "image encoder":
        return CheckpointError(
            f"{source}: is no folder of an image encoder (no config.json); name the folder of "
            "the CLIP vision model that the IP-Adapter was trained with"
        )
    return CheckpointError(
        f"{source}: no such file; check the path (on the hub: ORGANISATION/REPOSITORY/FILE)"
    )
