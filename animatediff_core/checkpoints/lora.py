"""LoRA in the weights: `W += scale * alpha / rank * up @ down`, in fp32, whatever the dialect.

Dialects: kohya (`lora_unet_down_blocks_0_…lora_up.weight` with alpha), diffusers and PEFT
(`unet.….lora_A.weight`, `….lora.up.weight`), the official domain adapter and MotionLoRA
(`….processor.to_q_lora.up.weight`, `….attention_blocks.0.processor.to_q_lora.up.weight`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..motion import MotionModule
from .files import read_tensors

_UP_DOWN = re.compile(
    r"^(?P<layer>.+?)[._](?P<kind>lora_up|lora_down|lora_A|lora_B|lora\.up|lora\.down|"
    r"lora_linear_layer\.up|lora_linear_layer\.down)(?:\.default)?(?:\.weight)?$"
)
_PROCESSOR = re.compile(
    r"^(?P<layer>.+)\.processor\.(?P<name>to_[qkv]|to_out)_lora\.(?P<kind>up|down)\.weight$"
)
_ROLES = {"lora_up": "up", "lora_B": "up", "lora_down": "down", "lora_A": "down"}


@dataclass
class _Delta:
    up: Tensor | None = None
    down: Tensor | None = None
    alpha: float | None = None


def apply_lora(target: Any, path: str | Path, scale: float = 1.0) -> int:
    """Merge a LoRA into a UNet, a BaseModel or a diffusers pipeline; returns the layers changed.

    CheckpointError where it changes nothing, or where some of its layers fit nothing: named.
    """
    path = Path(path)
    tensors = read_tensors(path).tensors
    if any("motion_modules." in key for key in tensors):
        what = "MotionLoRA, which goes into motion_loras (--motion-lora)"
        if not any("lora" in key for key in tensors):
            what = "motion module, which goes into motion (--motion)"
        raise CheckpointError(f"{path}: is no LoRA for the image model but a {what}")
    return _merge(_targets(target), read_deltas(tensors, path), path, scale)


def apply_motion_lora(motion: MotionModule, path: str | Path, scale: float = 1.0) -> int:
    """Merge a MotionLoRA into a motion module; returns the layers changed (a full v2 file: 168)."""
    path = Path(path)
    tensors = read_tensors(path).tensors
    if not any("motion_modules." in key and "lora" in key for key in tensors):
        what = "a LoRA for the image model, which goes into loras (--lora)"
        if any("motion_modules." in key for key in tensors):
            what = "a motion module, which goes into motion (--motion)"
        elif not any("lora" in key for key in tensors):
            what = "something else; `animatediff inspect` says what"
        raise CheckpointError(f"{path}: is no MotionLoRA but {what}")
    deltas = read_deltas(tensors, path)
    if motion.mid_block is None:
        deltas = {k: d for k, d in deltas.items() if not k.startswith("mid_block")}
    return _merge(_layers_of(motion, ""), deltas, path, scale)


def read_deltas(tensors: Mapping[str, Tensor], path: Path) -> dict[str, _Delta]:
    """The up and down matrices of every layer, by the file's name for it."""
    deltas: dict[str, _Delta] = {}
    unknown = []
    for key, tensor in tensors.items():
        if key.endswith(".alpha"):
            deltas.setdefault(_plain(key.removesuffix(".alpha")), _Delta()).alpha = float(tensor)
            continue
        found = _named(key)
        if found is None:
            unknown.append(key)
            continue
        layer, role = found
        setattr(deltas.setdefault(layer, _Delta()), role, tensor)
    if unknown or not deltas:
        first = f", first {unknown[0]}" if unknown else ""
        raise CheckpointError(
            f"{path}: {len(unknown)} of {len(tensors)} tensors are of no LoRA kind that is "
            f"known{first}; kohya, diffusers and official files are"
        )
    halves = [layer for layer, d in deltas.items() if d.up is None or d.down is None]
    if halves:
        raise CheckpointError(f"{path}: {halves[0]} lacks its up or down half; download it again")
    return deltas


def _named(key: str) -> tuple[str, str] | None:
    """Layer and role (up or down) of one tensor."""
    if match := _PROCESSOR.match(key):
        name = "to_out.0" if match["name"] == "to_out" else match["name"]
        return _plain(f"{match['layer']}.{name}"), match["kind"]
    if match := _UP_DOWN.match(key):
        role = _ROLES.get(match["kind"]) or match["kind"].rsplit(".", 1)[1]
        layer = match["layer"].replace(".processor.", ".")
        layer = re.sub(r"\.(to_[qkv])_lora$", r".\1", layer)
        return _plain(re.sub(r"\.to_out(_lora)?$", ".to_out.0", layer)), role
    return None


def _plain(name: str) -> str:
    """One spelling for every dialect: prefixes told apart, dots as underscores."""
    name = name.removeprefix("module.").removeprefix("base_model.model.")
    name = re.sub(r"^(lora_unet_|unet\.)", "", name)
    name = re.sub(r"^lora_te(1?)_|^text_encoder\.", "te1_", name)
    name = re.sub(r"^lora_te2_|^text_encoder_2\.", "te2_", name)
    name = re.sub(r"[._]to_out$", "_to_out_0", name)
    return name.replace(".", "_")


def _targets(target: Any) -> dict[str, nn.Linear | nn.Conv2d]:
    """Every layer that a LoRA could change, by its plain name."""
    if isinstance(target, nn.Module):
        return _layers_of(target, "")
    layers = _layers_of(target.unet, "")
    encoders = getattr(target, "text_encoders", None)
    if encoders is None:
        encoders = [getattr(target, n, None) for n in ("text_encoder", "text_encoder_2")]
    for number, encoder in enumerate((e for e in encoders if e is not None), start=1):
        layers |= _layers_of(encoder, f"te{number}_")
    return layers


def _layers_of(model: nn.Module, prefix: str) -> dict[str, nn.Linear | nn.Conv2d]:
    layers: dict[str, nn.Linear | nn.Conv2d] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            plain = prefix + name.replace(".", "_")
            layers[plain] = layer
            if prefix and not name.startswith("text_model."):
                layers[f"{prefix}text_model_{name.replace('.', '_')}"] = layer
    return layers


def _merge(
    layers: Mapping[str, nn.Linear | nn.Conv2d],
    deltas: Mapping[str, _Delta],
    path: Path,
    scale: float,
) -> int:
    missing = sorted(name for name in deltas if name not in layers)
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} of its {len(deltas)} layers fit nothing in this model, first "
            f"{missing[0]}; use a LoRA of the base model's family"
        )
    changes = []
    for name, delta in deltas.items():
        layer = layers[name]
        change = _product(delta)
        if change.numel() != layer.weight.numel():
            raise CheckpointError(
                f"{path}: {name} has the shape of another family of models; "
                "use a LoRA of the base model's family"
            )
        changes.append((layer, change.view(layer.weight.shape)))
    with torch.no_grad():
        for layer, change in changes:
            weight = layer.weight
            weight.copy_((weight.float() + scale * change.to(weight.device)).to(weight.dtype))
    return len(changes)


def _product(delta: _Delta) -> Tensor:
    """up @ down, times alpha over rank: the change of a weight, fp32."""
    assert delta.up is not None
    assert delta.down is not None
    rank = delta.down.shape[0]
    factor = 1.0 if delta.alpha is None else delta.alpha / rank
    up, down = delta.up.float(), delta.down.float()
    if down.ndim == 4 and down.shape[2:] != (1, 1) or up.ndim == 4 and up.shape[2:] != (1, 1):
        return factor * torch.einsum("or...,rikl->oikl", up.flatten(1), down)
    return factor * (up.flatten(1) @ down.flatten(1))
