"""Where a motion module's tensors are: a file, or a folder in diffusers' or our own form."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from ..weights.files import read_config_json
from ..weights.weight_file import Shapes, WeightFile, open_model
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
    file: WeightFile

    def tensors(self) -> dict[str, Tensor]:
        """All of them by official name, as the file's own pages."""
        return official_keys(self.file.tensors())


def read_motion(path: Path) -> MotionContent:
    """The names and shapes of all motion tensors of a file or folder."""
    found = motion_path(path) if path.is_dir() else path
    if found is None:
        raise CheckpointError(
            f"{path}: holds no motion module; name a MotionAdapter folder or a file"
        )
    return motion_content(open_model(found))


def motion_content(file: WeightFile) -> MotionContent:
    """The names and shapes of all motion tensors of an opened file or folder."""
    names = official_keys(file.shapes)
    return MotionContent(names, file.metadata, file.config, dialect_of(file.shapes), file)


def motion_path(folder: Path) -> Path | None:
    """The MotionAdapter folder or our own file in a model's folder; None if it has neither."""
    for inner in (folder, folder / "motion_adapter"):
        config = inner / "config.json"
        if config.is_file() and read_config_json(config).get("_class_name") == "MotionAdapter":
            return inner
    return folder / MOTION_FILE if (folder / MOTION_FILE).is_file() else None
