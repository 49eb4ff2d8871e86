"""ControlNets and SparseCtrl encoders in files and folders: which is which, and for which family.

Names are brought to diffusers' own: those of the first release (`control_model.…`, `zero_convs.…`)
by diffusers' conversion, those of the official SparseCtrl by taking wrappers and prefixes off.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from diffusers.models import UNet2DConditionModel

from ..checkpoints.families import families_with, family_of
from ..checkpoints.motion_names import is_position
from ..errors import CheckpointError
from ..weights.files import read_config_json
from ..weights.folder import weight_files
from ..weights.weight_file import open_weights

ControlKind = Literal["ControlNet", "SparseCtrl"]
_CLASSES: dict[str, ControlKind] = {
    "ControlNetModel": "ControlNet",
    "SparseControlNetModel": "SparseCtrl",
}
EMBEDDING = "controlnet_cond_embedding."
_ORIGINAL = "control_model."
_RELEASED_FRAMES = 32
"""Positions of the released SparseCtrl encoders, for a file that holds none."""
_READS_TEXT = re.compile(r"\.attn2\.to_k\.weight$")


@dataclass(frozen=True)
class ControlContent:
    """What a file or folder holds of a control model."""

    kind: ControlKind
    tensors: dict[str, Any]
    """By diffusers' names: tensors, or shapes where it was only listed."""
    settings: Mapping[str, Any] | None
    """A folder's config.json."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """By name."""
        return {key: tuple(getattr(t, "shape", t)) for key, t in self.tensors.items()}

    @property
    def embedding_channels(self) -> tuple[int, ...]:
        """Of the convolutions that bring pictures to latent size."""
        shapes = self.shapes
        channels = list(shapes.get(f"{EMBEDDING}conv_in.weight", (16, 0))[:1])
        while shape := shapes.get(f"{EMBEDDING}blocks.{2 * len(channels) - 1}.weight"):
            channels.append(shape[0])
        return tuple(channels)


def read_control(path: Path, *, shapes_only: bool = False) -> ControlContent:
    """A ControlNet or SparseCtrl encoder; CheckpointError where it is neither."""
    settings = None
    files = [path]
    if path.is_dir():
        settings = read_config_json(path / "config.json")
        files = weight_files(path)
    found: dict[str, Any] = {}
    for file in files:
        opened = open_weights(file)
        found |= opened.shapes if shapes_only else opened.tensors()
    tensors = _diffusers_names(found, path)
    kind: ControlKind = "ControlNet"
    if any(".motion_modules." in key for key in tensors):
        kind = "SparseCtrl"
    said = None if settings is None else _CLASSES.get(str(settings.get("_class_name")))
    if settings is not None and said != kind:
        raise CheckpointError(
            f"{path}: its config.json says {str(settings.get('_class_name'))[:60]} but its "
            f"weights are of a {kind}; download the folder again"
        )
    return ControlContent(kind, tensors, settings)


def control_families(content: ControlContent, path: Path) -> list[str]:
    """SD1.5, SD2, SDXL, or the levels of the UNet that it was made for; several where it reads no
    text, so that its levels alone tell."""
    shapes, levels = content.shapes, list[int]()
    while shape := shapes.get(f"down_blocks.{len(levels)}.resnets.0.conv1.weight"):
        levels.append(shape[0])
    if not levels:
        raise CheckpointError(f"{path}: lacks the first levels of a {content.kind}; download it "
                              "again")  # fmt: skip
    widths = [s[1] for key, s in shapes.items() if _READS_TEXT.search(key) and len(s) == 2]
    if widths:
        return [family_of(levels, max(widths))]
    return families_with(levels) or [family_of(levels, 0)]


def control_frames(content: ControlContent) -> int:
    """How many frames a SparseCtrl encoder knows: by its positions, else by its config.json."""
    lengths = {s[1] for key, s in content.shapes.items() if is_position(key) and len(s) == 3}
    said = (content.settings or {}).get("motion_max_seq_length")
    if len(lengths) == 1:
        return lengths.pop()
    return said if isinstance(said, int) and said > 0 else _RELEASED_FRAMES


def check_family(content: ControlContent, unet: UNet2DConditionModel, path: Path) -> None:
    """Refuse a control model that was made for another kind of UNet."""
    theirs = control_families(content, path)
    width = unet.config.cross_attention_dim
    ours = family_of(unet.config.block_out_channels, width if isinstance(width, int) else width[0])
    if ours not in theirs:
        raise CheckpointError(
            f"{path}: is a {content.kind} for {' or '.join(theirs)} but the base model is {ours}; "
            "use one of the base model's family"
        )


def _diffusers_names(found: Mapping[str, Any], path: Path) -> dict[str, Any]:
    plain = {k.removeprefix("controlnet.").removeprefix("module."): t for k, t in found.items()}
    if any(key.startswith(_ORIGINAL) for key in plain):  # a whole checkpoint may lie around it
        plain = {
            key.removeprefix(_ORIGINAL): tensor
            for key, tensor in plain.items()
            if key.startswith(_ORIGINAL)
        }
    if "lora_controlnet" in plain:
        raise CheckpointError(
            f"{path}: is a control-LoRA, only a part of a ControlNet; use a full ControlNet"
        )
    if "zero_convs.0.0.weight" in plain:
        plain = _converted(plain, path)
    if not any(key.startswith("controlnet_") for key in plain):
        raise CheckpointError(
            f"{path}: is no ControlNet and no SparseCtrl encoder; `animatediff inspect` says what "
            "it is"
        )
    return plain


def _converted(plain: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The first release's names by diffusers' conversion, run on the names alone. It leaves out
    what it does not know; that stays under its old name, to be refused."""
    downs = [int(m[1]) for key in plain if (m := re.match(r"input_blocks\.(\d+)\.0\.op\.", key))]
    if not downs:
        raise CheckpointError(f"{path}: lacks the first levels of a ControlNet; download it again")
    layers = {"layers_per_block": min(downs) - 1}  # a downsampler follows the first level's layers
    names = {key: key for key in plain}
    try:
        converted = convert_controlnet_checkpoint(names, layers)
    except (KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: lacks tensors of a ControlNet ({str(error)[:80]}); download it again"
        ) from error
    old_names = {new: old for new, old in converted.items() if old is not None}
    unknown = plain.keys() - set(old_names.values())
    return {new: plain[old] for new, old in old_names.items()} | {k: plain[k] for k in unknown}
