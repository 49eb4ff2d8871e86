"""LoRA files in all their dialects: recognised by their names, read as layers by one plain name.

Dialects: kohya and LyCORIS (`lora_unet_down_blocks_0_…lora_up.weight`, `….hada_w1_a`,
`….lokr_w1`, `….diff`, `….w_norm`, with alpha), diffusers and PEFT (`unet.….lora_A.weight`,
`….lora.up.weight`), the official domain adapter and MotionLoRA
(`….processor.to_q_lora.up.weight`), MotionDirector (`….to_out.processor.0_lora.…`).
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ...checkpoints.families import family_reading
from ...checkpoints.file_report import FileReport
from ...errors import CheckpointError
from ...weights.files import read_config_json
from ...weights.safetensors_file import headers_only
from ...weights.weight_file import WeightFile
from .math import Delta
from .names import plain_name

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
_FORMS = {
    "LoHa": "hada_", "LoKr": "lokr_", "LoCon": "mid", "DoRA": "dora_scale",
    "DoRA (PEFT)": "magnitude", "full difference": "diff",
}  # fmt: skip
"""By how the roles of their tensors begin."""
_PEFT_METADATA = "lora_adapter_metadata"
"""Entry in which diffusers stores PEFT's settings, by component."""
_OTHER_FAMILIES = (
    "flux", "sd3", "diffusion-3", "diffusion-v3", "cascade", "auraflow", "pixart", "hunyuan", "wan",
    "lumina", "chroma", "qwen", "cogvideo", "ltx", "mochi",
)  # fmt: skip
"""Words of trainers for families that have no Stable Diffusion UNet."""
_MOTION_WIDTHS = {0, 320, 640, 1280, 2560, 5120}
"""Features that the layers of a motion module for SD1.5 or SDXL read."""
Roles = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class LoraInfo(FileReport):
    """A LoRA, domain adapter or MotionLoRA."""

    file: WeightFile = field(repr=False)
    parts: Mapping[str, tuple[str, str]] = field(repr=False)
    """Plain name of the layer, and role in it, of each tensor."""
    unknown: tuple[str, ...] = field(repr=False)
    """Tensors of no LoRA kind that is known."""


def recognise_lora(file: WeightFile) -> LoraInfo | None:
    """A LoRA in any dialect, for the image model or for a motion module."""
    named = {key: _named(key) for key in file.shapes}
    parts = {key: part for key, part in named.items() if part is not None}
    roles = {role for _, role in parts.values()} - {"alpha"}
    if not roles and not any("lora" in key for key in named):
        return None
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, (layer, role) in parts.items():
        layers.setdefault(layer, {})[role] = file.shapes[key]
    details = _details(layers, roles)
    kind, goes_in, family = "LoRA", "loras", _family(layers, file.metadata) or "unknown"
    if any("motion_modules" in key or "temporal_attentions" in key for key in named):
        kind, goes_in, family = "MotionLoRA", "motion_loras", _motion_family(layers)
        has_middle = any(layer.startswith("mid_block") for layer in layers)
        details["mid block"] = "yes" if has_middle else "no"
    elif details.get("rank") == "128" and all(".processor." in key for key in named):
        kind = "domain adapter"
    return LoraInfo(
        path=file.path,
        kind=kind,
        family=family,
        goes_in=goes_in,
        details=details,
        file=file,
        parts=parts,
        unknown=tuple(key for key in named if key not in parts),
    )


def read_lora(info: LoraInfo) -> dict[str, Delta]:
    """The factors of every layer; CheckpointError names what is unknown or incomplete."""
    path, count = info.path, len(info.file.shapes)
    if info.unknown or not info.parts:
        first = f", first {info.unknown[0]}" if info.unknown else ""
        raise CheckpointError(
            f"{path}: {len(info.unknown)} of {count} tensors are of no LoRA kind that is "
            f"known{first}; kohya, LyCORIS (LoCon, LoHa, LoKr), diffusers and official files are"
        )
    deltas: dict[str, Delta] = {}
    for key, tensor in info.file.tensors().items():
        layer, role = info.parts[key]
        delta = deltas.setdefault(layer, Delta())
        if role in delta.factors or (role == "alpha" and delta.alpha is not None):
            raise CheckpointError(f"{path}: names {layer}'s {role} twice; download it again")
        if role == "alpha":
            delta.alpha = _number(tensor, layer, path)
        else:
            delta.factors[role] = tensor
    for layer, delta in deltas.items():
        if (lacking := delta.lacks()) is not None:
            raise CheckpointError(f"{path}: {layer} lacks its part {lacking}; download it again")
    _set_alphas(deltas, _peft_settings(info.file.metadata, path))
    return deltas


def _details(layers: Mapping[str, Roles], roles: set[str]) -> dict[str, str]:
    """Layers, form and ranks, in words."""
    details = {"layers": str(len(layers))}
    forms = [form for form, mark in _FORMS.items() if any(r.startswith(mark) for r in roles)]
    if forms:
        details["form"] = ", ".join(forms)
    downs = [r.get("down") or r.get("hada_w1_b") for r in layers.values()]
    if ranks := sorted({shape[0] for shape in downs if shape}):
        details["rank"] = ", ".join(map(str, ranks))
    if any(layer.startswith(("te1_", "te2_")) for layer in layers):
        details["text encoder"] = "yes"
    return details


def _family(layers: Mapping[str, Roles], metadata: Mapping[str, str]) -> str | None:
    """SD1.5, SD2, SDXL, another family by its trainer's word, or None if nothing says it."""
    if any(layer.startswith("te2_") for layer in layers):
        return "SDXL"
    readers = [roles for layer, roles in layers.items() if re.search(r"attn2_to_[kv]$", layer)]
    widths = {width for roles in readers if (width := _width(roles))}
    families = {family for width in widths if (family := family_reading(width))}
    if families:
        return max(families)
    return None if widths else _noted_family(metadata)


def _width(roles: Roles) -> int:
    """Features that a layer reads."""
    for role in ("down", "hada_w1_b", "hada_w2_b", "diff"):
        if len(shape := roles.get(role, ())) > 1:
            return shape[1]
    small = roles.get("lokr_w1") or roles.get("lokr_w1_b", ())
    large = roles.get("lokr_w2") or roles.get("lokr_w2_b", ())
    return small[1] * large[1] if len(small) > 1 and len(large) > 1 else 0


def _noted_family(metadata: Mapping[str, str]) -> str | None:
    """The family in the words of kohya's trainer, or of the model specification."""
    note = metadata.get("ss_base_model_version") or metadata.get("modelspec.architecture") or ""
    text = note.lower().replace("_", "-")
    known = {
        "SDXL": ("sdxl", "xl-v1"),
        "SD2": ("sd-v2", "diffusion-v2"),
        "SD1.5": ("sd-v1", "diffusion-v1"),
    }
    for family, marks in known.items():
        if any(mark in text for mark in marks):
            return family
    if any(word in text for word in _OTHER_FAMILIES):
        return json.dumps(note[:40]).strip('"')
    return None


def _motion_family(layers: Mapping[str, Roles]) -> str:
    """SD1.5 or SDXL, by the highest block: a module for SDXL has three on each side, not four."""
    sites = (re.match(r"(?:down|up)_blocks_(\d\d?)_motion_modules", layer) for layer in layers)
    if not {_width(roles) for roles in layers.values()} <= _MOTION_WIDTHS:
        return "unknown"
    return "SDXL" if max((int(site[1]) for site in sites if site), default=3) == 2 else "SD1.5"


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


def _number(tensor: Tensor, layer: str, path: Path) -> float:
    value = 1.0 if headers_only() else float(tensor.sum())
    if tensor.numel() != 1 or not math.isfinite(value):
        raise CheckpointError(f"{path}: {layer}'s alpha is no number; download it again")
    return value


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
    """Apply the settings that PEFT keeps outside the tensors: alpha by layer, root of the rank."""
    for layer, delta in deltas.items():
        if not settings or delta.alpha is not None or "down" not in delta.factors:
            continue
        part = {"te1_": "text_encoder.", "te2_": "text_encoder_2."}.get(layer[:4], "unet.")
        own = {
            key.removeprefix(part): value
            for key, value in settings.items()
            if key.startswith(part) or "." not in key
        }
        alpha = own.get("lora_alpha")
        patterns = own.get("alpha_pattern")
        for name, value in (patterns if isinstance(patterns, dict) else {}).items():
            if layer.endswith(str(name).lstrip("^").replace(".", "_")):
                alpha = value
        if isinstance(alpha, int | float):
            rank = delta.factors["down"].shape[0]
            delta.alpha = alpha * (math.sqrt(rank) if own.get("use_rslora") else 1.0)
