"""ControlNets and SparseCtrl encoders in files and folders: which is which, and for which family.

Names are brought to diffusers' own: those of the first release (`control_model.…`, `zero_convs.…`)
by diffusers' conversion, those of the official SparseCtrl by taking wrappers and prefixes off.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from diffusers.models import UNet2DConditionModel
from torch import Tensor

from ..checkpoints.families import families_of, family_of_unet
from ..checkpoints.file_report import NOWHERE, FileReport, require, wrong_family
from ..checkpoints.motion_names import is_position
from ..errors import CheckpointError
from ..weights.weight_file import WeightFile, open_model

EMBEDDING = "controlnet_cond_embedding."
_ORIGINAL = "control_model."
_MARKS = ("controlnet_", _ORIGINAL, "input_hint_block.", "zero_convs.", "lora_controlnet")
_RELEASED_FRAMES = 32
"""Positions of the released SparseCtrl encoders, for a file that holds none."""


@dataclass(frozen=True, kw_only=True)
class ControlInfo(FileReport):
    """A ControlNet or SparseCtrl encoder."""

    file: WeightFile = field(repr=False)
    names: Mapping[str, str] = field(repr=False)
    """The file's own name of each tensor, by diffusers' name; empty if the file is not whole."""
    families: tuple[str, ...]
    """The families that it fits: several if it reads no text, none if the file is not whole."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by diffusers' names."""
        return {name: self.file.shapes[key] for name, key in self.names.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Tensors by diffusers' names."""
        found = self.file.tensors()
        return {name: found[key] for name, key in self.names.items()}

    @property
    def embedding_channels(self) -> tuple[int, ...]:
        """Channels of the convolutions that bring images to latent size."""
        shapes = self.shapes
        channels = list(shapes.get(f"{EMBEDDING}conv_in.weight", (16, 0))[:1])
        while shape := shapes.get(f"{EMBEDDING}blocks.{2 * len(channels) - 1}.weight"):
            channels.append(shape[0])
        return tuple(channels)

    @property
    def max_frames(self) -> int:
        """Frames that a SparseCtrl encoder knows: by its positions, else by its config.json."""
        shapes = self.file.shapes
        lengths = {s[1] for key, s in shapes.items() if is_position(key) and len(s) == 3}
        if len(lengths) == 1:
            return lengths.pop()
        length = (self.file.config or {}).get("motion_max_seq_length")
        return length if isinstance(length, int) and length > 0 else _RELEASED_FRAMES


def recognise_control(file: WeightFile) -> ControlInfo | None:
    """A ControlNet, control-LoRA or SparseCtrl encoder."""
    bare = {key.removeprefix("controlnet.").removeprefix("module."): key for key in file.shapes}
    if not any(name.startswith(_MARKS) for name in bare):
        return None
    inner = {  # a whole checkpoint may lie around it
        name.removeprefix(_ORIGINAL): key
        for name, key in bare.items()
        if name.startswith(_ORIGINAL)
    }
    bare = inner or bare
    is_original = not any(name.startswith("controlnet_") for name in bare)
    names = _converted(bare) if is_original else bare
    families = families_of({name: file.shapes[key] for name, key in names.items()})
    info = ControlInfo(
        path=file.path,
        kind="ControlNet",
        family=" or ".join(families) or "unknown",
        goes_in="controlnets",
        details={"layout": "original" if is_original else "diffusers"},
        file=file,
        names=names,
        families=families,
    )
    if "lora_controlnet" in bare:
        note = "it is a control-LoRA, only a part of a ControlNet; use a full ControlNet"
        return replace(info, goes_in=NOWHERE, details={"layout": "control-LoRA", "note": note})
    if not any(".motion_modules." in name for name in bare):
        return info
    reads = "scribbles" if f"{EMBEDDING}conv_in.weight" in bare else "RGB images (their latents)"
    return replace(
        info,
        kind="SparseCtrl",
        version="v3",
        goes_in="sparse_controls",
        details={"reads": reads, "frames": f"{info.max_frames} at most"},
    )


def open_control(path: Path, key: str, unet: UNet2DConditionModel) -> ControlInfo:
    """A file or folder that goes into a key of a prompt file and fits a UNet, opened."""
    info = require(recognise_control(open_model(path)), key, path)
    check_control_family(info, family_of_unet(unet), path)
    return info


def check_control_family(info: ControlInfo, family: str, source: str | Path) -> None:
    """Raise CheckpointError if a control model was made for another family."""
    if not info.families:
        raise CheckpointError(f"{source}: lacks tensors of a {info.kind}; download it again")
    if family not in info.families:
        raise wrong_family(info, family, source)


def _converted(bare: Mapping[str, str]) -> dict[str, str]:
    """The names of the first release by diffusers' conversion; none if tensors are missing.

    The conversion leaves out what it does not know: that keeps its old name, to be rejected.
    """
    downs = [int(m[1]) for name in bare if (m := re.match(r"input_blocks\.(\d+)\.0\.op\.", name))]
    if not downs:
        return {}
    layers = {"layers_per_block": min(downs) - 1}  # a downsampler follows the first block's layers
    try:
        converted = convert_controlnet_checkpoint({name: name for name in bare}, layers)
    except KeyError:
        return {}
    names = {new: bare[old] for new, old in converted.items() if old is not None}
    return names | {name: key for name, key in bare.items() if key not in set(names.values())}
