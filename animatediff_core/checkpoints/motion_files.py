"""Where a motion module's tensors are (a file, a diffusers folder, its parts), read or listed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..weights.files import check_weight_file, read_metadata, read_shapes, read_tensors
from .motion_names import Dialect, dialect_of, official_keys

_WEIGHTS = "diffusion_pytorch_model"
_LARGEST_JSON = 1 << 20
"""Bytes; a MotionAdapter's config.json has a few hundred."""


@dataclass(frozen=True)
class MotionContent:
    """What a file or folder holds of a motion module."""

    tensors: dict[str, Any]
    """By official name: tensors, or shapes where it was only listed."""
    metadata: Mapping[str, str]
    settings: Mapping[str, Any] | None
    """diffusers' config.json, where there is one."""
    dialect: Dialect
    names: tuple[str, ...]
    """The file's own names, the first thousand: they say what it is where it is no module."""


def read_motion(path: Path, *, shapes_only: bool = False) -> MotionContent:
    """All motion tensors of a file or folder by official names; none where it is something else."""
    files, settings = motion_files(path)
    found: dict[str, Any] = {}
    for file in files:
        part: Mapping[str, Any] = read_shapes(file) if shapes_only else read_tensors(file).tensors
        if twice := sorted(found.keys() & part.keys()):
            raise CheckpointError(f"{path}: two files hold {twice[0]}; download the folder again")
        found |= part
    metadata = read_metadata(files[0])
    return MotionContent(
        official_keys(found), metadata, settings, dialect_of(found), tuple(found)[:1000]
    )


def motion_files(path: Path) -> tuple[list[Path], dict[str, Any] | None]:
    """The weight files, and diffusers' settings where `path` is a MotionAdapter folder."""
    if not path.is_dir():
        return [path], None
    for inner in (path, path / "motion_adapter"):
        config = inner / "config.json"
        if config.is_file():
            settings = read_json(config)
            if settings.get("_class_name") == "MotionAdapter":
                return _folder_files(inner), settings
    ours = path / "motion_module.safetensors"
    if ours.is_file():
        return [ours], None
    raise CheckpointError(f"{path}: holds no motion module; name a MotionAdapter folder or a file")


def read_json(path: Path) -> dict[str, Any]:
    """A folder's small JSON file; CheckpointError where it is none."""
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise ValueError("it is too large")
        content = json.loads(path.read_text("utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no mapping")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); download it again") from error
    return content


def _folder_files(folder: Path) -> list[Path]:
    """One file, or all parts that an index names; full precision before fp16 before pickles."""
    for suffix in ("safetensors", "bin"):
        for variant in ("", ".fp16", ".bf16"):
            whole = folder / f"{_WEIGHTS}{variant}.{suffix}"
            if whole.is_file():
                return [whole]
            index = folder / f"{_WEIGHTS}.{suffix}.index{variant}.json"
            if index.is_file():
                return _parts(index)
    raise CheckpointError(
        f"{folder}: has a config.json but no {_WEIGHTS}.safetensors; download the folder again"
    )


def _parts(index: Path) -> list[Path]:
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise CheckpointError(f"{index}: names no parts; download the folder again")
    names = sorted({str(name) for name in named.values()})
    for name in names:
        if Path(name).name != name or name.startswith("."):
            raise CheckpointError(
                f"{index}: names a file outside its folder ({name[:80]}); download it again"
            )
    parts = [index.parent / name for name in names]
    for part in parts:
        check_weight_file(part)
    return parts
