"""Motion modules in and out of files: official keys, diffusers keys, Hotshot-XL's, our own.

Facts used: the key table of the released files (28 tensors a site, of which two are positions),
and diffusers' conversion script. Positions are not kept but computed, so stored ones must be the
standard sinusoids; a file with others is refused.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..motion import MotionConfig, MotionModule
from ..motion.config import Norm
from ..motion.module import sinusoids
from ..weights.files import write_tensors
from .motion_config import CONFIG_KEY, read_config
from .motion_files import MotionContent, read_motion
from .motion_names import is_position

log = logging.getLogger(__name__)

_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""How far stored positions may be from computed ones: the rounding of their dtype."""


def load_motion_module(
    path: str | Path, *, version: str | None = None, frame_norm: Norm | None = None
) -> MotionModule:
    """Read a motion module from a file or diffusers folder; every tensor must find its place.

    `version` (a key of VERSIONS) decides the arithmetic where the content cannot; `frame_norm`
    overrides the module's own norm. Raises CheckpointError where the file is something else.
    """
    path = Path(path)
    content = read_motion(path)
    config = config_of(content, version=version, path=path)
    if frame_norm is not None:
        config = replace(config, frame_norm=frame_norm)
    with torch.device("meta"):
        motion = MotionModule(config)
    weights = content.tensors
    _check_complete(motion, {k: t for k, t in weights.items() if not is_position(k)}, path)
    check_positions(weights, config.max_frames, path)
    for key in list(weights):
        tensor = weights.pop(key)  # one by one, so that no second copy is kept
        if not is_position(key):
            weights[key] = tensor.float()
    motion.load_state_dict(weights, assign=True)
    return motion.requires_grad_(False).eval()


def motion_config_of(path: str | Path, *, version: str | None = None) -> MotionConfig:
    """A file's or folder's configuration by names and shapes; nothing is loaded."""
    content = read_motion(Path(path), shapes_only=True)
    return config_of(content, version=version, path=Path(path))


def config_of(content: MotionContent, *, version: str | None, path: Path) -> MotionConfig:
    """The same of what was read already; CheckpointError says what a file is instead."""
    if not content.tensors:
        raise CheckpointError(f"{path}: is not a motion module; {_instead(content.names)}")
    return read_config(content, version=version, path=path)


def save_motion_module(
    motion: MotionModule, path: str | Path, *, form: Literal["official", "diffusers"] = "official"
) -> None:
    """Write a safetensors file of official keys, or a folder that diffusers' MotionAdapter opens.

    Both keep the configuration in the metadata, so either comes back exactly as it was.
    """
    path = Path(path)
    if form == "official":
        write_tensors(path, motion.state_dict(), config_metadata(motion.config))
        return
    from .write import motion_adapter  # builds on this module

    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise CheckpointError(f"{path}: exists already and is not empty; choose another name")
    adapter = motion_adapter(motion)
    weights = path / "diffusion_pytorch_model.safetensors"
    write_tensors(weights, adapter.state_dict(), config_metadata(motion.config))
    adapter.save_config(path)


def config_metadata(config: MotionConfig) -> dict[str, str]:
    """The metadata that makes a file say what it is."""
    return {CONFIG_KEY: json.dumps(asdict(config)), "format": "pt"}


def _check_complete(motion: MotionModule, weights: Mapping[str, Tensor], path: Path) -> None:
    expected = {key: tuple(t.shape) for key, t in motion.state_dict().items()}
    missing = sorted(expected.keys() - weights.keys())
    unknown = sorted(weights.keys() - expected.keys())
    wrong = [k for k, t in weights.items() if k in expected and tuple(t.shape) != expected[k]]
    unreal = [key for key, t in weights.items() if not t.is_floating_point()]
    for what, keys in (("lacks", missing), ("has unknown", unknown), ("has misshapen", wrong),
                       ("has quantised", unreal)):  # fmt: skip
        if keys:
            raise CheckpointError(
                f"{path}: {what} {len(keys)} of {len(expected)} tensors of a "
                f"{motion.config.version} motion module, first {keys[0]}; "
                "download it again or give its version"
            )


def check_positions(tensors: Mapping[str, Any], frames: int, path: Path) -> None:
    """Stored positions are 1 f c, as long as the module is, and the ones that we compute."""
    stored = {key: tensor for key, tensor in tensors.items() if is_position(key)}
    computed: dict[int, Tensor] = {}
    for key, tensor in stored.items():
        norm = f"{key.split('.temporal_transformer.')[0]}.temporal_transformer.norm.weight"
        channels = len(tensors[norm]) if norm in tensors else 0
        if tuple(tensor.shape) != (1, frames, channels):
            raise CheckpointError(
                f"{path}: {key} has shape {tuple(tensor.shape)}, not "
                f"{(1, frames, channels)}; download it again"
            )
        if channels not in computed:
            computed[channels] = sinusoids(frames, channels, torch.zeros(()))
        apart = float((tensor[0].float() - computed[channels]).abs().max())
        if not apart <= _TOLERANCE.get(tensor.dtype, 1e-3):
            raise CheckpointError(
                f"{path}: {key} holds positions of its own (up to {apart:.2g} from the standard "
                "sinusoids, stretched or trained), which are not supported; use the module as "
                "its author first published it"
            )
    if stored:
        log.info("%s: its %d stored positions are the standard sinusoids, so they are computed",
                 path, len(stored))  # fmt: skip


def _instead(names: tuple[str, ...]) -> str:
    """What a file is, where it is no motion module."""
    joined = " ".join(names)
    if "lora" in joined:
        if "motion_modules" in joined:
            return "it is a MotionLoRA, which goes into motion_loras (--motion-lora)"
        return "it is a LoRA, which goes into loras (--lora)"
    if "controlnet_" in joined:
        kind = "SparseCtrl encoder" if "motion_modules" in joined else "ControlNet"
        place = "sparse_controls" if "motion_modules" in joined else "controlnets"
        return f"it is a {kind}, which goes into {place}"
    if any(key.startswith(("model.diffusion_model.", "down_blocks.")) for key in names):
        return "it is an image model, which goes into base (--base)"
    return "none of its tensors belongs to one"
