"""Where a motion module's tensors are: a file, or a folder in diffusers' or our own form."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from ..weights.files import read_config_json
from ..weights.folder import weight_files
from ..weights.weight_file import Shapes, WeightFile, open_weights
from .motion_names import Dialect, dialect_of, official_keys

MOTION_FILE = "motion_module.safetensors"
"""Our own form's file in a model's folder."""


@dataclass(frozen=True)
class MotionContent:
    """The motion module in a file or folder; nothing, if it is something else."""

    shapes: Shapes
    """By official name."""
    metadata: Mapping[str, str]
    settings: Mapping[str, Any] | None
    """diffusers' config.json, if there is one."""
    dialect: Dialect
    files: tuple[WeightFile, ...] = ()

    def tensors(self) -> dict[str, Tensor]:
        """All of them by official name, as the files' own pages."""
        return official_keys({k: t for file in self.files for k, t in file.tensors().items()})


def read_motion(path: Path) -> MotionContent:
    """The names and shapes of all motion tensors of a file or folder."""
    paths, settings = _motion_files(path)
    files = tuple(open_weights(file) for file in paths)
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        if twice := sorted(shapes.keys() & file.shapes.keys()):
            raise CheckpointError(f"{path}: two files hold {twice[0]}; download the folder again")
        shapes |= file.shapes
    return MotionContent(
        official_keys(shapes), files[0].metadata, settings, dialect_of(shapes), files
    )


def _motion_files(path: Path) -> tuple[list[Path], dict[str, Any] | None]:
    """The weight files, and diffusers' settings if `path` is a MotionAdapter folder."""
    if not path.is_dir():
        return [path], None
    for folder in (path, path / "motion_adapter"):
        if (folder / "config.json").is_file():
            settings = read_config_json(folder / "config.json")
            if settings.get("_class_name") == "MotionAdapter":
                return weight_files(folder), settings
    if (path / MOTION_FILE).is_file():
        return [path / MOTION_FILE], None
    raise CheckpointError(f"{path}: holds no motion module; name a MotionAdapter folder or a file")
