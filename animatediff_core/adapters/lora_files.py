"""LoRA files in all their dialects -> layers by one plain name.

Dialects: kohya and LyCORIS (`lora_unet_down_blocks_0_…lora_up.weight`, `….hada_w1_a`,
`….lokr_w1`, `….diff`, `….w_norm`, with alpha), diffusers and PEFT (`unet.….lora_A.weight`,
`….lora.up.weight`), the official domain adapter and MotionLoRA
(`….processor.to_q_lora.up.weight`), MotionDirector (`….to_out.processor.0_lora.…`).
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from ..weights.files import read_config_json
from .lora_family import lora_family
from .lora_math import Delta
from .lora_names import plain_name

_UP_DOWN = re.compile(
    r"^(?P<layer>.+?)[._](?P<kind>lora_up|lora_down|lora_A|lora_B|lora\.up|lora\.down|"
    r"lora_linear_layer\.up|lora_linear_layer\.down|lora_magnitude_vector)(?:\.default)?"
    r"(?:\.weight)?$"
)
_PROCESSOR = re.compile(
    r"^(?P<layer>.+)\.processor\.(?P<name>to_[qkv]|to_out|proj|\d+)_lora\.(?P<kind>up|down)\.weight$"
)
_LYCORIS = re.compile(
    r"^(?P<layer>.+)\.(?P<kind>hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2|diff|diff_b|"
    r"w_norm|b_norm|dora_scale|lora_mid(?=\.weight))(?:\.weight)?$"
)
_ALPHA = re.compile(r"^(?P<layer>.+?)(?:[._]lora(?:_linear_layer)?)?\.alpha$")
_ROLES = {
    "lora_up": "up", "lora_B": "up", "lora_down": "down", "lora_A": "down", "lora_mid": "mid",
    "w_norm": "diff", "b_norm": "diff_b", "lora_magnitude_vector": "magnitude",
}  # fmt: skip
_PEFT_METADATA = "lora_adapter_metadata"
"""Entry in which diffusers stores PEFT's settings, by component."""


@dataclass(frozen=True)
class LoraFile:
    """A LoRA by layers."""

    deltas: dict[str, Delta]
    """By plain name."""
    family: str | None
    """The base models that it was made for, where the file tells."""


def read_lora(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> LoraFile:
    """The factors of every layer; CheckpointError names what is unknown or incomplete."""
    deltas: dict[str, Delta] = {}
    unknown = []
    for key, tensor in tensors.items():
        found = _named(key)
        if found is None:
            unknown.append(key)
            continue
        layer, role = found
        delta = deltas.setdefault(layer, Delta())
        if role in delta.factors or (role == "alpha" and delta.alpha is not None):
            raise CheckpointError(f"{path}: names {layer}'s {role} twice; download it again")
        if role == "alpha":
            delta.alpha = _number(tensor, layer, path)
        else:
            delta.factors[role] = tensor
    if unknown or not deltas:
        first = f", first {unknown[0]}" if unknown else ""
        raise CheckpointError(
            f"{path}: {len(unknown)} of {len(tensors)} tensors are of no LoRA kind that is "
            f"known{first}; kohya, LyCORIS (LoCon, LoHa, LoKr), diffusers and official files are"
        )
    for layer, delta in deltas.items():
        if (lacking := delta.lacks()) is not None:
            raise CheckpointError(f"{path}: {layer} lacks its part {lacking}; download it again")
    _set_alphas(deltas, _peft_settings(metadata, path))
    return LoraFile(deltas, lora_family({k: tuple(t.shape) for k, t in tensors.items()}, metadata))


def _number(tensor: Tensor, layer: str, path: Path) -> float:
    if tensor.numel() != 1 or not math.isfinite(float(tensor)):
        raise CheckpointError(f"{path}: {layer}'s alpha is no number; download it again")
    return float(tensor)


def _named(key: str) -> tuple[str, str] | None:
    """Layer and role of one tensor."""
    if match := _PROCESSOR.match(key):
        name = "to_out.0" if match["name"] == "to_out" else match["name"]
        return plain_name(f"{match['layer']}.{name}"), match["kind"]
    if match := _ALPHA.match(key):
        return _layer(match["layer"]), "alpha"
    if match := _LYCORIS.match(key):
        return _layer(match["layer"]), _ROLES.get(match["kind"], match["kind"])
    if match := _UP_DOWN.match(key):
        role = _ROLES.get(match["kind"]) or match["kind"].rsplit(".", 1)[1]
        return _layer(match["layer"]), role
    return None


def _layer(name: str) -> str:
    """The plain name, the attention processor's level taken out."""
    name = name.replace(".processor.", ".")
    name = re.sub(r"\.(to_[qkv])_lora$", r".\1", name)
    return plain_name(re.sub(r"\.to_out(_lora)?$", ".to_out.0", name))


def _peft_settings(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """PEFT's settings by dotted name, from the metadata or the adapter_config.json beside."""
    beside = path.with_name("adapter_config.json")
    if path.stem == "adapter_model" and beside.is_file():
        return read_config_json(beside)
    if _PEFT_METADATA not in metadata:
        return {}
    try:
        settings = json.loads(metadata[_PEFT_METADATA])
        if not isinstance(settings, dict):
            raise ValueError("it is no mapping")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: its metadata {_PEFT_METADATA} cannot be read ({error}); download it again"
        ) from error
    return settings


def _set_alphas(deltas: Mapping[str, Delta], settings: Mapping[str, Any]) -> None:
    """What PEFT keeps outside the tensors: alpha by layer, and scaling by the root of the rank."""
    if not settings:
        return
    for layer, delta in deltas.items():
        if delta.alpha is not None or "down" not in delta.factors:
            continue
        part = {"te1_": "text_encoder.", "te2_": "text_encoder_2."}.get(layer[:4], "unet.")
        said = {k.removeprefix(part): v for k, v in settings.items()
                if k.startswith(part) or "." not in k}  # fmt: skip
        alpha = said.get("lora_alpha")
        patterns = said.get("alpha_pattern")
        for name, own in (patterns if isinstance(patterns, dict) else {}).items():
            if layer.endswith(str(name).lstrip("^").replace(".", "_")):
                alpha = own
        if isinstance(alpha, int | float):
            rank = delta.factors["down"].shape[0]
            delta.alpha = alpha * (math.sqrt(rank) if said.get("use_rslora") else 1.0)
