"""The official AnimateDiff prompt files: a list of models, each with lists of prompts and seeds;
and the oldest of them, a mapping of names to models."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .building import Entry
from .peers import SD15, found, listed
from .reader import check_keys

_PATHS = ("dreambooth_path", "lora_model_path", "motion_module", "adapter_lora_path")
_CONTROL = (
    "controlnet_config", "controlnet_path", "controlnet_images", "controlnet_image_indexs",
    "normalize_condition_images",
)  # fmt: skip
_KNOWN = (
    *_PATHS, *_CONTROL, "lora_alpha", "adapter_lora_scale", "inference_config",
    "motion_module_lora_configs", "seed", "steps", "guidance_scale", "W", "H", "L", "prompt",
    "n_prompt",
)  # fmt: skip
_VERSIONS = {"inference-v1": "v1", "inference-v2": "v2", "inference-v3": "v3"}
_OLDEST = ("base", "path", "motion_module", "lora_alpha", "seed", "steps", "guidance_scale",
           "prompt", "n_prompt", "init_image")  # fmt: skip


def is_oldest(content: Mapping[Any, Any]) -> bool:
    """Whether a mapping is of the oldest form: names of models that have a path and prompts."""
    return bool(content) and all(
        isinstance(one, Mapping) and {"path", "prompt"} <= one.keys() for one in content.values()
    )


def oldest_entries(
    content: Mapping[Any, Any], folder: Path, root: Path | None, problems: list[str]
) -> list[Entry]:
    """Every clip of a file in the oldest form, which may name several motion modules."""
    entries = []
    for name, model in content.items():
        check_keys(model, _OLDEST, f"{name}.", problems)
        if model.get("init_image"):
            problems.append(f"{name}.init_image: is not supported; remove it")
        base, path = str(model.get("base") or ""), str(model.get("path") or "")
        # with a base, the path is a LoRA on it
        own = {"dreambooth_path": base, "lora_model_path": path} if base else {
            "dreambooth_path": path
        }  # fmt: skip
        shared = {k: v for k, v in model.items() if k not in ("base", "path", "init_image")}
        for motion in listed(model.get("motion_module")) or [""]:
            one = {**shared, **own, "motion_module": motion}
            entries += _model_entries(one, f"{name}.", folder, root, problems)
    return entries


def official_entries(
    content: list[Any], folder: Path, root: Path | None, problems: list[str]
) -> list[Entry]:
    """Every clip of a file in the list form."""
    entries = []
    for index, model in enumerate(content):
        if not isinstance(model, Mapping):
            problems.append(f"[{index}]: must be a mapping, as in the official prompt files")
            continue
        check_keys(model, _KNOWN, f"[{index}].", problems)
        entries += _model_entries(model, f"[{index}].", folder, root, problems)
    return entries


def _model_entries(
    model: Mapping[str, Any], place: str, folder: Path, root: Path | None, problems: list[str]
) -> list[Entry]:
    shared = _shared(model, place, folder, root, problems)
    if model.get("controlnet_path"):
        shared["sparse_controls"] = [_sparse_control(model, place, folder, root, problems)]
    elif any(model.get(key) for key in _CONTROL):
        problems.append(f"{place}controlnet_path: is missing, but other controlnet keys are there")
    return [
        Entry(f"{place}prompt[{number}].", {**shared, **varying}, (folder,))
        for number, varying in enumerate(_varying(model, place, problems))
    ]


def _shared(
    model: Mapping[str, Any], place: str, folder: Path, root: Path | None, problems: list[str]
) -> dict[str, Any]:
    paths = {key: found(str(model.get(key) or ""), folder, root) for key in _PATHS}
    loras = []
    if paths["lora_model_path"]:
        loras.append({"path": paths["lora_model_path"], "scale": model.get("lora_alpha", 0.8)})
    if paths["adapter_lora_path"]:
        scale = model.get("adapter_lora_scale", 1.0)
        loras.append({"path": paths["adapter_lora_path"], "scale": scale})
    moves = listed(model.get("motion_module_lora_configs"))
    for index, one in enumerate(moves):
        if not isinstance(one, Mapping) or not one.keys() <= {"path", "alpha"} or "path" not in one:
            problems.append(
                f"{place}motion_module_lora_configs[{index}]: must be a mapping of path and alpha"
            )
            moves = []
    settings: dict[str, Any] = {
        "base": paths["dreambooth_path"] or SD15,
        "motion": paths["motion_module"] or None,
        "motion_version": _VERSIONS.get(Path(str(model.get("inference_config", ""))).stem),
        "loras": loras,
        "motion_loras": [
            {"path": found(str(one["path"]), folder, root), "scale": one.get("alpha", 1.0)}
            for one in moves
        ],
    }
    names = {"W": "width", "H": "height", "L": "frames", "steps": "steps",
             "guidance_scale": "guidance_scale"}  # fmt: skip
    return settings | {ours: model[theirs] for theirs, ours in names.items() if theirs in model}


def _sparse_control(
    model: Mapping[str, Any], place: str, folder: Path, root: Path | None, problems: list[str]
) -> dict[str, Any]:
    """What encodes the pictures is told by the file itself, not by controlnet_config."""
    images = listed(model.get("controlnet_images"))
    frames = listed(model.get("controlnet_image_indexs", [0]))
    if len(images) != len(frames) or not all(isinstance(frame, int) for frame in frames):
        problems.append(
            f"{place}controlnet_image_indexs: has {len(frames)} frames for {len(images)} "
            "controlnet_images; give one for each"
        )
        images = frames = []
    return {
        "path": found(str(model["controlnet_path"]), folder, root),
        "pictures": {
            frame: found(str(image), folder, root)
            for frame, image in zip(frames, images, strict=True)
        },
        "normalize": model.get("normalize_condition_images", False),
    }


def _varying(model: Mapping[str, Any], place: str, problems: list[str]) -> list[dict[str, Any]]:
    """Prompt, negative prompt and seed of each clip; one value serves all."""
    prompts = listed(model.get("prompt"))
    if not prompts:
        problems.append(f"{place}prompt: must be a list of at least one text")
        return []
    lists: dict[str, tuple[str, list[Any]]] = {
        "negative_prompt": ("n_prompt", [""]),
        "seed": ("seed", [-1]),
    }
    columns: dict[str, list[Any]] = {"prompt": prompts}
    for ours, (theirs, default) in lists.items():
        values = listed(model.get(theirs)) or default
        if len(values) not in (1, len(prompts)):
            problems.append(
                f"{place}{theirs}: has {len(values)} values for {len(prompts)} prompts; "
                "give one for all or one for each"
            )
            return []
        columns[ours] = values * len(prompts) if len(values) == 1 else values
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
