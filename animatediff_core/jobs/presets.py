"""Presets: a model with the settings that suit it, one YAML file each, shipped as data."""

from pathlib import Path
from typing import Any

import yaml

from ..errors import PromptFileError

FOLDER = Path(__file__).parent.parent / "models" / "presets"


def preset_names() -> list[str]:
    """The presets in the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_preset(name: str) -> dict[str, Any]:
    """A preset's settings by the names of a prompt file, and `about`, a line for people."""
    path = FOLDER / f"{name}.yaml"
    if name not in preset_names():
        raise PromptFileError(f"no preset {name!r}; there are {', '.join(preset_names())}")
    settings: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return settings
