"""LoRA files in all their dialects: recognised by their names, read as layers by one plain name.

Dialects: kohya and LyCORIS (`lora_unet_down_blocks_0_…lora_up.weight`, `….hada_w1_a`,
`….lokr_w1`, `….diff`, `….w_norm`, with alpha), diffusers and PEFT (`unet.….lora_A.weight`,
`….lora.up.weight`), the official domain adapter and MotionLoRA
(`….processor.to_q_lora.up.weight`), MotionDirector (`….to_out.processor.0_lora.…`).
"""

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ...checkpoints.families import family_reading
from ...checkpoints.file_report import NOWHERE, FileReport
from ...errors import CheckpointError
from ...weights.files import printable
from ...weights.safetensors_file import headers_only
from ...weights.weight_file import WeightFile, open_weights
from ..textual_inversion import BUNDLED
from .math import Delta, lacking
from .names import plain_name
from .peft import lora_file, peft_settings, set_alphas

log = logging.getLogger(__name__)

_ADAPTER = r"(?:\.(?!weight$|bias$)[^.]+)?"
"""PEFT's name of an adapter among others: default, default_0."""
_UP_DOWN = re.compile(
    r"^(?P<layer>.+?)[._](?P<kind>lora_up|lora_down|lora_A|lora_B|lora\.up|lora\.down|"
    r"lora_linear_layer\.up|lora_linear_layer\.down|lora_magnitude_vector)"
    rf"{_ADAPTER}(?:\.weight)?$"
)
_PROCESSOR = re.compile(
    r"^(?P<layer>.+)\.processor\.(?P<name>to_[qkv]|to_out|proj|\d+)_lora\.(?P<kind>up|down)\.weight$"
)
_LYCORIS = re.compile(
    r"^(?P<layer>.+)\.(?P<kind>hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2|diff|diff_b|"
    r"w_norm|b_norm|dora_scale|lora_mid(?=\.weight)|[ab][12](?=\.weight)|oft_blocks|rescale|"
    rf"on_input){_ADAPTER}(?:\.weight)?$"
)
_ALPHA = re.compile(r"^(?P<layer>.+?)(?:[._]lora(?:_linear_layer)?)?\.alpha$")
_ROLES = {
    "lora_up": "up", "lora_B": "up", "lora_down": "down", "lora_A": "down", "lora_mid": "mid",
    "w_norm": "diff", "b_norm": "diff_b", "lora_magnitude_vector": "magnitude",
}  # fmt: skip
_FORMS = {
    "LoHa": "hada_", "LoKr": "lokr_", "LoCon": "mid", "DoRA": "dora_scale",
    "DoRA (PEFT)": "magnitude", "full difference": "diff", "GLoRA": "a1", "IA3": "ia3",
    "OFT": "oft_blocks",
}  # fmt: skip
"""By how the roles of their tensors begin."""
_NOT_READ = {
    "oft_R": "PEFT's OFT", "oft_r": "PEFT's OFT", "boft_R": "PEFT's BOFT", "ia3_l": "PEFT's IA3",
    "vera_lambda_b": "VeRA", "hra_u": "HRA", "lora_E": "AdaLoRA",
    "fourierft_spectrum": "FourierFT",
    "lora_embedding_A": "a LoRA of the text encoder's vocabulary",
}  # fmt: skip
"""Forms that are known but not applied, by a part of their tensors' names."""
_PLAIN_ROLES = {"a1", "a2", "b1", "b2", "rescale", "on_input"}
"""Roles whose names other models have too."""
_READ = "kohya, LyCORIS (LoCon, LoHa, LoKr, GLoRA, IA3, OFT, BOFT), PEFT, diffusers and official"
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
    """Dotted or underscored name of the layer, and role in it, of each tensor."""


def open_lora(path: Path) -> LoraInfo | None:
    """The LoRA in a file, or in a folder of PEFT or diffusers."""
    return recognise_lora(open_weights(lora_file(path)))


def recognise_lora(file: WeightFile) -> LoraInfo | None:
    """A LoRA in any dialect, for the image model or for a motion module."""
    parts = _parts(file)
    words = {bundled["word"] for key in file.shapes if (bundled := BUNDLED.match(key))}
    unknown = [key for key in file.shapes if key not in parts and not BUNDLED.match(key)]
    not_read = {part for key in unknown for part in key.split(".") if part in _NOT_READ}
    roles = {role for _, role in parts.values()} - {"alpha"}
    is_marked = any("lora" in key or "lycoris" in key for key in file.shapes)
    if not roles - _PLAIN_ROLES and not not_read and not is_marked:
        return None
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, (layer, role) in parts.items():
        layers.setdefault(_layer(layer), {})[role] = file.shapes[key]
    details = _details(layers, roles)
    kind, goes_in, family = "LoRA", "loras", _family(layers, file.metadata) or "unknown"
    if any("motion_modules" in key or "temporal_attentions" in key for key in file.shapes):
        kind, goes_in, family = "MotionLoRA", "motion_loras", _motion_family(layers)
        has_middle = any(layer.startswith("mid_block") for layer in layers)
        details["mid block"] = "yes" if has_middle else "no"
    elif details.get("rank") == "128" and all(".processor." in key for key in file.shapes):
        kind = "domain adapter"
    if words:
        details["embeddings"] = ", ".join(sorted(words))
    if (note := _problem(parts, layers, unknown, not_read)) is not None:
        goes_in, details["note"] = NOWHERE, note
    return LoraInfo(
        path=file.path,
        kind=kind,
        family=family,
        goes_in=goes_in,
        details=details,
        file=file,
        parts=parts,
    )


def read_lora(info: LoraInfo) -> dict[str, Delta]:
    """The factors of every layer by its plain name; warns of layers that an alpha of 0 mutes."""
    deltas: dict[str, Delta] = {}
    modules: dict[str, str] = {}
    tensors = info.file.tensors()
    for key, (module, role) in info.parts.items():
        layer, tensor = _layer(module), tensors[key]
        delta = deltas.setdefault(layer, Delta())
        modules[layer] = module
        if role == "alpha":
            delta.alpha = _number(tensor, layer, info.path)
        elif role == "on_input":
            delta.on_input = bool(_number(tensor, layer, info.path))
        else:
            delta.factors[role] = tensor.float() if tensor.itemsize == 1 else tensor
    set_alphas(deltas, modules, peft_settings(info.path, info.file.metadata), info.path)
    muted = [layer for layer, delta in deltas.items() if delta.scale == 0]
    if muted and not headers_only():
        message = "%s: alpha is 0 in %d of %d layers (first %s), which therefore change nothing"
        log.warning(message, info.path, len(muted), len(deltas), muted[0])
    return deltas


def _parts(file: WeightFile) -> dict[str, tuple[str, str]]:
    """The layer as it is spelled, and the role in it, of each tensor of a known form."""
    named = {key: _named(key) for key in file.shapes}
    parts = {key: part for key, part in named.items() if part is not None}
    for layer in [layer for layer, role in parts.values() if role == "on_input"]:
        if (key := f"{layer}.weight") in file.shapes:
            parts[key] = layer, "ia3"
    return parts


def _problem(
    parts: Mapping[str, tuple[str, str]],
    layers: Mapping[str, Roles],
    unknown: Sequence[str],
    not_read: set[str],
) -> str | None:
    """Why the names of a file cannot be used, or None."""
    if not_read:
        return f"{_NOT_READ[min(not_read)]} is not supported; {_READ} files are"
    if unknown:
        return (
            f"{len(unknown)} of {len(unknown) + len(parts)} tensors are of no LoRA kind that is "
            f"known, first {printable(unknown[0])}; {_READ} files are"
        )
    twice = Counter((_layer(layer), role) for layer, role in parts.values()).most_common(1)
    if twice and twice[0][1] > 1:
        layer, role = twice[0][0]
        return f"it names {printable(layer)}'s {role} twice; download it again"
    for layer, roles in layers.items():
        if (part := lacking(roles)) is not None:
            return f"{printable(layer)} lacks its part {part}; download it again"
    return None


def _details(layers: Mapping[str, Roles], roles: set[str]) -> dict[str, str]:
    """Layers, form and ranks, in words."""
    details = {"layers": str(len(layers))}
    forms = [form for form, mark in _FORMS.items() if any(r.startswith(mark) for r in roles)]
    if forms:
        details["form"] = ", ".join(forms)
    downs = [r.get("down") or r.get("hada_w1_b") or r.get("b2") for r in layers.values()]
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
    for role in ("down", "hada_w1_b", "hada_w2_b", "b2", "diff"):
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
    """The layer as it is spelled, and the role of one tensor."""
    if match := _PROCESSOR.match(key):
        name = "to_out.0" if match["name"] == "to_out" else match["name"]
        return f"{match['layer']}.{name}", match["kind"]
    if match := _ALPHA.match(key):
        return match["layer"], "alpha"
    if match := _LYCORIS.match(key):
        return match["layer"], _ROLES.get(match["kind"], match["kind"])
    if match := _UP_DOWN.match(key):
        role = _ROLES.get(match["kind"]) or match["kind"].rsplit(".", 1)[1]
        return match["layer"], role
    return None


def _layer(name: str) -> str:
    """The plain name, the attention processor's level taken out."""
    name = name.replace(".processor.", ".")
    name = re.sub(r"\.(to_[qkv])_lora$", r".\1", name)
    return plain_name(re.sub(r"\.to_out(_lora)?$", ".to_out.0", name))


def _number(tensor: Tensor, layer: str, path: Path) -> float:
    value = 1.0 if headers_only() else float(tensor.float().sum())
    if tensor.numel() != 1 or not math.isfinite(value):
        raise CheckpointError(f"{path}: {layer}'s alpha is no number; download it again")
    return value
