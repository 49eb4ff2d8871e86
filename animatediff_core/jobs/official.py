"""The official AnimateDiff prompt files: a list of models, each with lists of prompts and seeds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
_PATHS = ("dreambooth_path", "lora_model_path", "motion_module", "adapter_lora_path")
_KNOWN = {
    *_PATHS, "lora_alpha", "adapter_lora_scale", "inference_config", "motion_module_lora_configs",
    "seed", "steps", "guidance_scale", "W", "H", "L", "prompt", "n_prompt",
}  # fmt: skip
_CONTROL = {
    "controlnet_config", "controlnet_path", "controlnet_images", "controlnet_image_indexs",
    "normalize_condition_images",
}  # fmt: skip
_VERSIONS = {"inference-v1": "v1", "inference-v2": "v2", "inference-v3": "v3"}


def official_entries(
    content: list[Any], folder: Path, root: Path | None, problems: list[str]
) -> list[tuple[str, dict[str, Any]]]:
    """(place, settings) of every clip in the file, in our names."""
    entries = []
    for index, entry in enumerate(content):
        place = f"[{index}]."
        if not isinstance(entry, dict):
            problems.append(f"[{index}]: must be a mapping, as in the official prompt files")
            continue
        for key in entry:
            if key in _CONTROL:
                problems.append(f"{place}{key}: SparseCtrl is not supported; remove its keys")
            elif key not in _KNOWN:
                problems.append(f"{place}{key}: unknown key of an official prompt file")
        shared = _shared(entry, folder, root)
        for number, varying in enumerate(_varying(entry, place, problems)):
            entries.append((f"{place}prompt[{number}].", {**shared, **varying}))
    return entries


def _shared(entry: Mapping[str, Any], folder: Path, root: Path | None) -> dict[str, Any]:
    paths = {key: _found(str(entry.get(key) or ""), folder, root) for key in _PATHS}
    loras = []
    if paths["lora_model_path"]:
        loras.append({"path": paths["lora_model_path"], "scale": entry.get("lora_alpha", 0.8)})
    if paths["adapter_lora_path"]:
        scale = entry.get("adapter_lora_scale", 1.0)
        loras.append({"path": paths["adapter_lora_path"], "scale": scale})
    version = _VERSIONS.get(Path(str(entry.get("inference_config", ""))).stem)
    settings: dict[str, Any] = {
        "base": paths["dreambooth_path"] or SD15,
        "motion": paths["motion_module"] or None,
        "motion_version": version,
        "loras": loras,
        "motion_loras": [
            {"path": _found(str(one.get("path", "")), folder, root), "scale": one.get("alpha", 1.0)}
            for one in entry.get("motion_module_lora_configs") or []
        ],
    }
    names = {"W": "width", "H": "height", "L": "frames", "steps": "steps",
             "guidance_scale": "guidance_scale"}  # fmt: skip
    return settings | {ours: entry[theirs] for theirs, ours in names.items() if theirs in entry}


def _varying(entry: Mapping[str, Any], place: str, problems: list[str]) -> list[dict[str, Any]]:
    """Prompt, negative prompt and seed of each clip; one value serves all."""
    prompts = _listed(entry.get("prompt"))
    if not prompts:
        problems.append(f"{place}prompt: must be a list of at least one text")
        return []
    lists: dict[str, tuple[str, list[Any]]] = {
        "negative_prompt": ("n_prompt", [""]),
        "seed": ("seed", [-1]),
    }
    columns: dict[str, list[Any]] = {"prompt": prompts}
    for ours, (theirs, default) in lists.items():
        values = _listed(entry.get(theirs)) or default
        if len(values) not in (1, len(prompts)):
            problems.append(
                f"{place}{theirs}: has {len(values)} values for {len(prompts)} prompts; "
                "give one for all or one for each"
            )
            return []
        columns[ours] = values * len(prompts) if len(values) == 1 else values
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _found(path: str, folder: Path, root: Path | None) -> str:
    """A path of the file where it exists: beside the file, then upward, then under the root."""
    if not path or Path(path).is_absolute():
        return str(root / path) if root else f"./{path}"
    places = [folder, *folder.absolute().parents, *([root] if root else [])]
    for place in places:
        if (place / path).exists():
            return str(place / path)
    return str(root / path) if root else f"./{path}"
