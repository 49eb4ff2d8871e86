"""Presets: a model with the settings that suit it, one YAML file each, shipped as data."""

import json
import os
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from ..errors import CheckpointError, PromptFileError
from .records import Adapter

RECORD_FILE = "animatediff.json"
"""Written by `inject` into its folder."""
FOLDER = Path(__file__).parent.parent / "models" / "presets"
OWN = frozenset({"width", "height", "frames", "steps", "guidance_scale", "scheduler"})
"""Settings that suit a base model, whatever moves it."""
KEPT_FOLDER = "adapters"
"""Where `inject --keep-adapters` puts the files in its folder."""
_KEPT_ROLES = ("lora", "motion_lora")


def preset_names() -> list[str]:
    """The presets in the package."""
    return sorted(_presets())


@lru_cache
def _presets() -> dict[str, dict[str, Any]]:
    """All of them, read once: thousands of jobs ask."""
    return {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in FOLDER.glob("*.yaml")}


def load_preset(name: str) -> dict[str, Any]:
    """A preset's settings by the names of a prompt file, and `about`, a line for people."""
    if name not in preset_names():
        raise PromptFileError(f"no preset {name!r}; there are {', '.join(preset_names())}")
    return deepcopy(_presets()[name])


def preset_settings(name: Any) -> dict[str, Any]:
    """A preset's settings as the lowest layer of a job."""
    return {key: value for key, value in load_preset(str(name)).items() if key != "about"}


def kept_adapters(base: Path) -> dict[str, tuple[Adapter, ...]]:
    """By role, the adapters that an injected folder keeps beside its models; else none.

    Raises CheckpointError where the folder's record names files outside of it.
    """
    adapters: dict[str, tuple[Adapter, ...]] = dict.fromkeys(_KEPT_ROLES, ())
    record = base / RECORD_FILE
    if not os.path.isfile(record):
        return adapters
    try:
        for one in json.loads(record.read_text("utf-8")).get("adapters", []):
            name = str(one["file"])
            if Path(name).name != name or name in ("", ".."):
                raise ValueError(f"file {name[:80]!r} is no plain name")
            adapter = Adapter(path=str(base / KEPT_FOLDER / name), scale=float(one["scale"]))
            adapters[one["role"]] += (adapter,)
    except RecursionError as error:
        raise CheckpointError(f"{record}: is nested too deeply; inject the model again") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{record}: its list of adapters cannot be read ({error}); inject the model again"
        ) from error
    return adapters


def defaults_of(base: str) -> dict[str, Any]:
    """The settings that suit a base model, where no preset is named: frames, size, steps, …

    What the presets with this base agree on, what `inject` noted in its folder, or for another
    diffusers folder the size that its configuration names.
    """
    alike = [s for s in map(load_preset, preset_names()) if s["base"] == base]
    if alike:
        first, *others = alike
        return {
            k: first[k] for k in OWN & first.keys() if all(s.get(k) == first[k] for s in others)
        }
    try:
        folder = Path(base).expanduser()
        if (folder / RECORD_FILE).is_file():
            noted = json.loads((folder / RECORD_FILE).read_text("utf-8")).get("defaults", {})
            return {key: noted[key] for key in OWN & noted.keys()}
        unet = json.loads((folder / "unet" / "config.json").read_text("utf-8"))
        vae = json.loads((folder / "vae" / "config.json").read_text("utf-8"))
        size = int(unet["sample_size"]) * 2 ** (len(vae["block_out_channels"]) - 1)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError):
        return {}  # planning names what is wrong with the folder
    return {"width": size, "height": size}
