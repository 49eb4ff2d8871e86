"""Reads a training YAML: our own keys, and the official training files as they are.

Every problem of a file is reported at once; nothing that it says is ignored in silence.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import TrainingError
from ..jobs.reader import read_fields
from .config import TrainConfig

_ALIASES = {
    "pretrained_model_path": "base",
    "global_seed": "seed",
    "train_data": "data",
    "validation_data": "validation",
    "unet_checkpoint_path": "unet",
    "adam_weight_decay": "weight_decay",
    "validation_steps": "validation.every",
    "validation_steps_tuple": "validation.at",
}
"""Official names, or our longer ones, of TrainConfig's fields."""
_VALIDATION_ALIASES = {"num_inference_steps": "steps"}
_MOTION_KEYS = {
    "motion_module_type": ("Vanilla",),
    "motion_module_resolutions": ([1, 2, 4, 8], [1, 2, 4]),
    "use_motion_module": (True, False),
    "unet_use_cross_frame_attention": (False,),
    "unet_use_temporal_attention": (False,),
    "motion_module_decoder_only": (False,),
}
"""Official settings of the module's place, and the values that this project builds."""
_KERNEL_KEYS = {
    "num_transformer_block": (1,),
    "attention_block_types": (["Temporal_Self", "Temporal_Self"],),
    "temporal_position_encoding": (True,),
    "temporal_attention_dim_div": (1,),
    "zero_initialize": (True,),
    "num_attention_heads": (8,),
}


def load_train_config(path: Path, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """Read a file; `overrides` are dotted keys (`data.sample_size`) that win over it.

    Paths in the file are relative to the file's folder, overrides' to the working folder.
    """
    try:
        text = path.read_text("utf-8")
        given = yaml.safe_load(text)
    except FileNotFoundError as error:
        raise TrainingError(f"{path}: no such file; name a training YAML") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise TrainingError(f"{path}: not a readable YAML file: {_first_line(error)}") from error
    except RecursionError as error:
        raise TrainingError(f"{path}: no valid YAML: it is nested too deeply") from error
    if not isinstance(given, dict):
        raise TrainingError(f"{path}: must be a mapping of settings such as base and train_data")
    problems: list[str] = []
    flat = _translated(given, problems)
    flat = _with_paths(flat, path.parent)
    for key, value in (overrides or {}).items():
        _put(flat, key, value)
    config = _built(flat, problems)
    if config is None or problems:
        raise TrainingError(f"{path}: " + "; ".join(problems))
    return config


def parse_override(text: str) -> tuple[str, Any]:
    """`KEY=VALUE` of the command line, the value read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise TrainingError(f"--set {text}: must be KEY=VALUE, for instance learning_rate=1e-5")
    try:
        return key, yaml.safe_load(value)
    except (yaml.YAMLError, RecursionError) as error:
        raise TrainingError(f"--set {text[:80]}: its value is no YAML") from error


def _translated(given: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """Official keys to ours; what has no counterpart must have the value that is built here."""
    flat: dict[str, Any] = {}
    for key, value in given.items():
        if key == "image_finetune":
            flat["stage"] = "image" if value else "motion"
        elif key == "mixed_precision_training":
            flat["mixed_precision"] = "fp16" if value else "no"
        elif key == "noise_scheduler_kwargs":
            _translate_noise(value, flat, problems)
        elif key == "unet_additional_kwargs":
            _translate_unet(value, flat, problems)
            moves = isinstance(value, dict) and value.get("use_motion_module", True)
            if not moves and not given.get("image_finetune"):
                problems.append(f"{key}.use_motion_module: false needs image_finetune: true")
        elif key == "trainable_modules":
            _expect("trainable_modules", value, (["motion_modules."], ["."]), problems)
        elif key in ("max_train_epoch", "checkpointing_epochs"):
            _expect(key, value, (-1, None), problems, hint="count in steps instead")
        elif key == "is_debug":
            _expect(key, value, (False,), problems, hint="use --dry-run instead")
        elif key == "enable_xformers_memory_efficient_attention":
            _expect(key, value, (True, False), problems)  # torch's own fused attention serves both
        elif key in ("unet_checkpoint_path", "motion", "csv_path") and value in ("", None):
            continue
        else:
            _put(flat, _ALIASES.get(key, key), value)
    return flat


def _translate_noise(value: Any, flat: dict[str, Any], problems: list[str]) -> None:
    known = {
        "num_train_timesteps": (1000,),
        "steps_offset": (0, 1),
        "clip_sample": (False,),
    }
    if not isinstance(value, dict):
        problems.append("noise_scheduler_kwargs: must be a mapping")
        return
    for key, one in value.items():
        if key in known:
            _expect(f"noise_scheduler_kwargs.{key}", one, known[key], problems)
        elif key not in ("beta_start", "beta_end", "beta_schedule"):
            problems.append(f"noise_scheduler_kwargs.{key}: unknown key")
    flat["betas"] = [
        value.get("beta_start", 0.00085),
        value.get("beta_end", 0.012),
        value.get("beta_schedule", "linear"),
    ]


def _translate_unet(value: Any, flat: dict[str, Any], problems: list[str]) -> None:
    if not isinstance(value, dict):
        problems.append("unet_additional_kwargs: must be a mapping")
        return
    inflated, mid = value.get("use_inflated_groupnorm", False), False
    for key, one in value.items():
        where = f"unet_additional_kwargs.{key}"
        if key == "motion_module_kwargs" and isinstance(one, dict):
            for inner, setting in one.items():
                if inner == "temporal_position_encoding_max_len":
                    flat["max_frames"] = setting
                elif inner in _KERNEL_KEYS:
                    _expect(f"{where}.{inner}", setting, _KERNEL_KEYS[inner], problems)
                else:
                    problems.append(f"{where}.{inner}: unknown key")
        elif key == "motion_module_mid_block":
            mid = bool(one)
        elif key in _MOTION_KEYS:
            _expect(where, one, _MOTION_KEYS[key], problems)
        elif key != "use_inflated_groupnorm":
            problems.append(f"{where}: unknown key")
    if mid and not inflated:
        problems.append("unet_additional_kwargs: a mid block needs use_inflated_groupnorm: true")
    if value.get("use_motion_module", True):
        flat["motion_version"] = "v2" if mid else ("v3" if inflated else "v1")


def _expect(
    key: str, value: Any, allowed: tuple[Any, ...], problems: list[str], hint: str = ""
) -> None:
    if value not in allowed:
        works = " or ".join(str(a) for a in allowed)
        problems.append(
            f"{key}: {value!r} is not supported{'; ' + hint if hint else ''}; {works} is"
        )


def _with_paths(flat: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make paths of the file independent of the working folder."""
    data = flat.get("data")
    if isinstance(data, dict):
        for key in ("video_folder", "csv_path", "cache_folder"):
            if isinstance(data.get(key), str) and data[key]:
                data[key] = str(folder / data[key])
            elif key != "video_folder":
                data.pop(key, None)
    if isinstance(flat.get("output_dir"), str):
        flat["output_dir"] = str(folder / flat["output_dir"])
    for key in ("base", "motion", "unet", "controlnet", "condition_folder", "image_encoder"):
        value = flat.get(key)
        if isinstance(value, str) and (folder / value).exists():
            flat[key] = str(folder / value)
    return flat


def _put(flat: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, with its official names allowed on each level."""
    first, _, rest = key.partition(".")
    first = _ALIASES.get(first, first)
    if "." in first and not rest:
        first, _, rest = first.partition(".")
    if not rest:
        if first == "validation" and isinstance(value, dict):
            value = {_VALIDATION_ALIASES.get(name, name): one for name, one in value.items()}
        if isinstance(value, dict) and isinstance(flat.get(first), dict):
            flat[first].update(value)
        else:
            flat[first] = value
        return
    inner = flat.setdefault(first, {})
    if isinstance(inner, dict):
        inner[_VALIDATION_ALIASES.get(rest, rest) if first == "validation" else rest] = value


def _built(given: Mapping[str, Any], problems: list[str]) -> TrainConfig | None:
    """The configuration; None where anything was wrong."""
    before = len(problems)
    values = read_fields(TrainConfig, given, "", problems)
    if len(problems) > before:
        return None
    try:
        return TrainConfig(**values)
    except TrainingError as error:
        problems.append(str(error))
        return None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
