"""LoRA files in all their dialects -> layers by one plain name.

Dialects: kohya and LyCORIS (`lora_unet_down_blocks_0_…lora_up.weight`, `….hada_w1_a`,
`….lokr_w1`, with alpha), diffusers and PEFT (`unet.….lora_A.weight`, `….lora.up.weight`), the
official domain adapter and MotionLoRA (`….processor.to_q_lora.up.weight`,
`….attention_blocks.0.processor.to_q_lora.up.weight`), MotionDirector
(`….to_out.processor.0_lora.…`, `….ff.net.0.processor.proj_lora.…`).
"""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..errors import CheckpointError
from .lora_math import Delta

_UP_DOWN = re.compile(
    r"^(?P<layer>.+?)[._](?P<kind>lora_up|lora_down|lora_A|lora_B|lora\.up|lora\.down|"
    r"lora_linear_layer\.up|lora_linear_layer\.down)(?:\.default)?(?:\.weight)?$"
)
_PROCESSOR = re.compile(
    r"^(?P<layer>.+)\.processor\.(?P<name>to_[qkv]|to_out|proj|\d+)_lora\.(?P<kind>up|down)\.weight$"
)
_LYCORIS = re.compile(
    r"^(?P<layer>.+)\.(?P<kind>hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2|diff|"
    r"lora_mid(?=\.weight))(?:\.weight)?$"
)
_ROLES = {
    "lora_up": "up", "lora_B": "up", "lora_down": "down", "lora_A": "down", "lora_mid": "mid",
}  # fmt: skip


def read_deltas(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Delta]:
    """The factors of every layer, by its plain name; CheckpointError names what is unknown."""
    deltas: dict[str, Delta] = {}
    unknown = []
    for key, tensor in tensors.items():
        if key.endswith(".alpha"):
            deltas.setdefault(_plain(key.removesuffix(".alpha")), Delta()).alpha = float(tensor)
            continue
        found = _named(key)
        if found is None:
            unknown.append(key)
            continue
        layer, role = found
        deltas.setdefault(layer, Delta()).factors[role] = tensor
    if unknown or not deltas:
        first = f", first {unknown[0]}" if unknown else ""
        raise CheckpointError(
            f"{path}: {len(unknown)} of {len(tensors)} tensors are of no LoRA kind that is "
            f"known{first}; kohya, LyCORIS (LoCon, LoHa, LoKr), diffusers and official files are"
        )
    for layer, delta in deltas.items():
        if (lacking := delta.lacks()) is not None:
            raise CheckpointError(f"{path}: {layer} lacks its part {lacking}; download it again")
    return deltas


def _named(key: str) -> tuple[str, str] | None:
    """Layer and role of one tensor."""
    if match := _PROCESSOR.match(key):
        name = "to_out.0" if match["name"] == "to_out" else match["name"]
        return _plain(f"{match['layer']}.{name}"), match["kind"]
    if match := _LYCORIS.match(key):
        return _plain(match["layer"]), _ROLES.get(match["kind"], match["kind"])
    if match := _UP_DOWN.match(key):
        role = _ROLES.get(match["kind"]) or match["kind"].rsplit(".", 1)[1]
        layer = match["layer"].replace(".processor.", ".")
        layer = re.sub(r"\.(to_[qkv])_lora$", r".\1", layer)
        return _plain(re.sub(r"\.to_out(_lora)?$", ".to_out.0", layer)), role
    return None


def _plain(name: str) -> str:
    """One spelling for every dialect: prefixes told apart, dots as underscores."""
    name = name.removeprefix("module.").removeprefix("base_model.model.")
    name = re.sub(r"^((lora|lycoris)_unet_|unet\.)", "", name)
    name = re.sub(r"^(lora|lycoris)_te(1?)_|^text_encoder\.", "te1_", name)
    name = re.sub(r"^(lora|lycoris)_te2_|^text_encoder_2\.", "te2_", name)
    name = re.sub(r"[._]to_out$", "_to_out_0", name)
    return name.replace(".", "_")
