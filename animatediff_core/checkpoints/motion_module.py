"""Motion modules in and out of files: official keys, diffusers keys, Hotshot-XL's, our own.

Facts used: the key table of the released files (28 tensors a site, of which two are positions),
and diffusers' conversion script. Positions are computed; those of a file are used where they differ
from the sinusoids.
"""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..motion import MotionConfig, MotionModule
from ..motion.config import Norm
from ..motion.module import FrameAttention, sinusoids
from ..weights.files import write_tensors
from ..weights.match import check_tensors, shapes_of
from ..weights.safetensors_file import headers_only
from .empty_model import emptied, fill, without_weights
from .file_report import wrong_kind
from .motion_adapter import motion_adapter, stored_positions
from .motion_config import CONFIG_KEY, read_config
from .motion_files import MotionContent, read_motion
from .motion_names import is_position
from .published import recognise_published

log = logging.getLogger(__name__)

_TOLERANCE = {
    torch.float32: 1e-3, torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float8_e4m3fn: 4e-2,
    torch.float8_e5m2: 8e-2,
}  # fmt: skip
"""How far stored positions may be from computed ones: the rounding of their dtype."""


def load_motion_module(
    path: str | Path,
    *,
    version: str | None = None,
    frame_norm: Norm | None = None,
    dtype: torch.dtype | None = torch.float32,
) -> MotionModule:
    """Read a motion module from a file or diffusers folder; every tensor must match a layer.

    `version` (a key of VERSIONS) decides the arithmetic if the content cannot; `frame_norm`
    overrides the module's own norm; with the dtype None each weight is as its file has it. Raises
    CheckpointError if the file is something else.
    """
    path = Path(path)
    content = read_motion(path)
    if (report := recognise_published(content.file)) is not None:
        raise wrong_kind(report, "motion", path)
    config = config_of(content, version=version, path=path)
    if frame_norm is not None:
        config = replace(config, frame_norm=frame_norm)
    motion: MotionModule = without_weights(MotionModule, config)
    found = {name: shape for name, shape in content.shapes.items() if not is_position(name)}
    part = f"{config.version} motion module"
    check_tensors(shapes_of(motion), found, path, part, "download it again or give its version")
    tensors = content.tensors()
    positions = own_positions(tensors, config.max_frames, path)
    weights = ((name, t) for name, t in emptied(tensors) if not is_position(name))
    fill(motion, weights, dtype, path)
    set_positions(motion, positions)
    return motion.requires_grad_(False).eval()


def config_of(content: MotionContent, *, version: str | None, path: Path) -> MotionConfig:
    """The configuration of a file or folder, by names and shapes."""
    if not content.shapes:
        raise CheckpointError(
            f"{path}: is not a motion module; `animatediff inspect` says what it is"
        )
    return read_config(content, version=version, path=path)


def save_motion_module(
    motion: MotionModule, path: str | Path, *, form: Literal["official", "diffusers"] = "official"
) -> None:
    """Write a safetensors file of official keys, or a folder that diffusers' MotionAdapter opens.

    Both keep the configuration in the metadata, so either comes back exactly as it was. The file
    has positions, by which other programs tell versions apart; AnimateLCM's alone has none.
    """
    path = Path(path)
    if form == "official":
        write_tensors(path, official_tensors(motion), config_metadata(motion.config))
        return
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise CheckpointError(f"{path}: exists already and is not empty; choose another name")
    adapter = motion_adapter(motion)
    weights = path / "diffusion_pytorch_model.safetensors"
    write_tensors(weights, adapter.state_dict(), config_metadata(motion.config))
    adapter.save_config(path)


def config_metadata(config: MotionConfig) -> dict[str, str]:
    """The metadata that makes a file say what it is."""
    return {CONFIG_KEY: json.dumps(asdict(config)), "format": "pt"}


def official_tensors(motion: MotionModule) -> dict[str, Tensor]:
    """The weights by official name, and positions (1 f c) unless it is AnimateLCM's own."""
    own = any(getattr(part, "positions", None) is not None for part in motion.modules())
    has_positions = own or motion.config.version != "animatelcm"
    return motion.state_dict() | (stored_positions(motion) if has_positions else {})


def own_positions(tensors: Mapping[str, Tensor], frames: int, path: Path) -> dict[str, Tensor]:
    """Stored positions, f c, that are not the sinusoids, by the name of their attention or block.

    Raises CheckpointError unless stored positions are 1 f c, as long as the module is.
    """
    stored = {key: tensor for key, tensor in tensors.items() if is_position(key)}
    computed: dict[int, Tensor] = {}
    own, furthest = {}, 0.0
    for key, tensor in stored.items():
        norm = f"{key.split('.temporal_transformer.')[0]}.temporal_transformer.norm.weight"
        channels = len(tensors[norm]) if norm in tensors else 0
        if tuple(tensor.shape) != (1, frames, channels):
            raise CheckpointError(
                f"{path}: {key} has shape {tuple(tensor.shape)}, not "
                f"{(1, frames, channels)}; use the module as its author first published it"
            )
        if channels not in computed:
            computed[channels] = sinusoids(frames, channels, torch.zeros(()))
        if headers_only():
            continue
        apart = float((tensor[0].float() - computed[channels]).abs().max())
        if not math.isfinite(apart):
            raise CheckpointError(f"{path}: {key} has values that are no numbers; use another file")
        if apart > _TOLERANCE.get(tensor.dtype, 1e-3):
            own[key.rpartition(".")[0].rpartition(".")[0]] = tensor[0].float().clone()
            furthest = max(furthest, apart)
    if own:
        message = (
            "%s: %d of its %d stored positions are its own (stretched or trained), up to %.2g from "
            "the sinusoids; they are used"
        )
        log.warning(message, path, len(own), len(stored), furthest)
    elif stored and not headers_only():
        message = "%s: its %d stored positions are the standard sinusoids, so they are computed"
        log.info(message, path, len(stored))
    return own


def set_positions(model: nn.Module, own: Mapping[str, Tensor]) -> None:
    """Give attentions the positions of their file; diffusers has one table for a whole block."""
    for name, table in own.items():
        for part in model.get_submodule(name).modules():
            if isinstance(part, FrameAttention):
                part.positions = table
