"""PEFT's settings, which it keeps outside the tensors: alpha and rank by layer."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ...weights.files import printable, read_config_json
from .math import Delta

CONFIG = "adapter_config.json"
"""PEFT's settings beside its weights."""
_FOLDER_FILES = (
    "adapter_model.safetensors", "adapter_model.bin", "pytorch_lora_weights.safetensors",
    "pytorch_lora_weights.bin",
)  # fmt: skip
_METADATA = "lora_adapter_metadata"
"""Entry in which diffusers stores PEFT's settings, by component."""
_PREFIXES = re.compile(r"^(base_model\.model\.|unet\.|text_encoder(_2)?\.)*")
_HOSTILE = re.compile(r"[*+}?]\)[*+{]|([*+{].*){9}")
"""Regular expressions that could take for ever."""


def lora_file(path: Path) -> Path:
    """The weight file of a folder that PEFT or diffusers wrote a LoRA into; else the path."""
    return next((path / name for name in _FOLDER_FILES if (path / name).is_file()), path)


def lora_files(path: Path) -> list[Path]:
    """The weights of a LoRA, and PEFT's settings beside them."""
    weights = lora_file(path)
    beside = weights.with_name(CONFIG)
    return [weights, beside] if weights.stem == "adapter_model" and beside.is_file() else [weights]


def peft_settings(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """PEFT's settings from the adapter_config.json beside, or diffusers' metadata; else none."""
    _, *beside = lora_files(path)
    if beside:
        return read_config_json(beside[0])
    if _METADATA not in metadata:
        return {}
    try:
        settings = json.loads(metadata[_METADATA])
        if not isinstance(settings, dict):
            raise ValueError("it is no mapping")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: its metadata {_METADATA} cannot be read ({error}); download it again"
        ) from error
    return settings


def set_alphas(
    deltas: Mapping[str, Delta], modules: Mapping[str, str], settings: Mapping[str, Any], path: Path
) -> None:
    """Give layers without an alpha the one of PEFT's settings; `modules`: their dotted names."""
    for layer, delta in deltas.items():
        if delta.alpha is not None:
            continue
        part = {"te1_": "text_encoder.", "te2_": "text_encoder_2."}.get(layer[:4], "unet.")
        own = {
            key.removeprefix(part): value
            for key, value in settings.items()
            if key.startswith(part) or "." not in key
        }
        module = _PREFIXES.sub("", modules[layer])
        alpha = own.get("lora_alpha", own.get("alpha"))
        alpha = _matching(own.get("alpha_pattern"), module, alpha, path)
        rank = _matching(own.get("rank_pattern"), module, own.get("r"), path)
        if isinstance(rank, int) and rank > 0:
            delta.rank = rank
        if isinstance(alpha, int | float):
            root = math.sqrt(delta.factor_rank or 1) if own.get("use_rslora") else 1.0
            delta.alpha = alpha * root


def _matching(patterns: object, module: str, default: object, path: Path) -> object:
    """The value of the first pattern that matches the end of a dotted name, as in PEFT."""
    for pattern, value in (patterns if isinstance(patterns, dict) else {}).items():
        try:
            if _HOSTILE.search(pattern):
                raise re.error("it is too complex")
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise CheckpointError(
                f"{path}: its pattern {printable(pattern)} cannot be used ({error}); correct it in "
                f"{CONFIG}"
            ) from error
    return default
