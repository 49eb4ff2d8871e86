"""Motion modules in and out of files: official keys, diffusers keys, Hotshot-XL's, our own.

Facts used: the key table of the released files (28 tensors a site, of which two are positions),
and diffusers' conversion script, whose six renames are undone here.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..motion import VERSIONS, MotionConfig, MotionModule
from ..motion.config import Norm
from .files import read_tensors, write_tensors

CONFIG_KEY = "animatediff_config"
"""Metadata entry of our own files: the MotionConfig as JSON."""
_SITE = re.compile(r"^(down_blocks\.\d+|up_blocks\.\d+|mid_block)\.motion_modules\.(\d+)\.")
FROM_DIFFUSERS = (
    (".transformer_blocks.0.attn1.", ".transformer_blocks.0.attention_blocks.0."),
    (".transformer_blocks.0.attn2.", ".transformer_blocks.0.attention_blocks.1."),
    (".transformer_blocks.0.norm1.", ".transformer_blocks.0.norms.0."),
    (".transformer_blocks.0.norm2.", ".transformer_blocks.0.norms.1."),
    (".transformer_blocks.0.norm3.", ".transformer_blocks.0.ff_norm."),
)
_HOTSHOT = re.compile(r"\.temporal_attentions\.(\d+)\.")


def load_motion_module(
    path: str | Path, *, version: str | None = None, frame_norm: Norm | None = None
) -> MotionModule:
    """Read a motion module from a file or diffusers folder; every tensor must find its place.

    `version` (a key of VERSIONS) decides the arithmetic where the content cannot; `frame_norm`
    overrides the module's own norm. Raises CheckpointError where the file is something else.
    """
    path = Path(path)
    if version is not None and version not in VERSIONS:
        raise CheckpointError(
            f"no motion module version {version!r}; there are {', '.join(VERSIONS)}"
        )
    file, settings = weights_in(path)
    content = read_tensors(file)
    tensors = official_keys(content.tensors)
    if not tensors:
        raise CheckpointError(f"{path}: is not a motion module; {_instead(content.tensors)}")
    config = read_config(tensors, content.metadata, version=version, settings=settings, path=path)
    if frame_norm is not None:
        config = replace(config, frame_norm=frame_norm)
    weights = {key: tensor for key, tensor in tensors.items() if not _is_position(key)}
    with torch.device("meta"):
        motion = MotionModule(config)
    _check_complete(motion, weights, path)
    motion.load_state_dict({k: t.float() for k, t in weights.items()}, assign=True)
    return motion.requires_grad_(False).eval()


def save_motion_module(motion: MotionModule, path: str | Path) -> None:
    """Write official keys as safetensors, the configuration in the metadata."""
    write_tensors(Path(path), motion.state_dict(), config_metadata(motion.config))


def config_metadata(config: MotionConfig) -> dict[str, str]:
    """The metadata that makes a file say what it is."""
    return {CONFIG_KEY: json.dumps(asdict(config)), "format": "pt"}


def official_keys(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The motion tensors of a file by their official names, whatever else is in it."""
    found = {}
    for key, tensor in tensors.items():
        name = key.removeprefix("module.").removeprefix("unet.")
        name = _HOTSHOT.sub(r".motion_modules.\1.temporal_transformer.", name)
        name = name.replace(".pos_encoder.positional_encoding", ".pos_encoder.pe")
        match = _SITE.match(name)
        if match is None or "lora" in name:
            continue
        rest = name[match.end() :]
        if not rest.startswith("temporal_transformer."):
            rest = _from_diffusers("." + rest)
            rest = f"temporal_transformer{rest}"
        found[match.group(0) + rest] = tensor
    return found


def _from_diffusers(rest: str) -> str:
    for theirs, ours in FROM_DIFFUSERS:
        rest = rest.replace(theirs, ours)
    return rest


def read_config(
    tensors: Mapping[str, Any],
    metadata: Mapping[str, str],
    *,
    version: str | None,
    settings: Mapping[str, Any] | None,
    path: Path,
) -> MotionConfig:
    """What the tensors (or shapes) of a file say about the module; `tensors` by official names."""
    if CONFIG_KEY in metadata and version is None:
        return _from_metadata(metadata[CONFIG_KEY], path)
    shapes = {key: tuple(getattr(t, "shape", t)) for key, t in tensors.items()}
    channels = _channels(shapes, path)
    mid = any(key.startswith("mid_block.") for key in shapes)
    positions = next((s[1] for k, s in shapes.items() if _is_position(k)), None)
    if settings is not None:
        positions = int(settings.get("motion_max_seq_length", positions or 32))
    name = version or _sniffed(channels, mid, positions, path)
    if name == "v2" and settings is not None and positions is not None and positions > 32:
        name = "animatelcm"
    kind = VERSIONS[name]
    if kind.mid_block != mid:
        raise CheckpointError(
            f"{path}: has {'a' if mid else 'no'} mid block, so it is no {name} module; "
            "leave the version out or name the right one"
        )
    heads = int(settings.get("motion_num_attention_heads", 8)) if settings else 8
    groups = int(settings.get("motion_norm_num_groups", 32)) if settings else 32
    return replace(
        kind,
        block_out_channels=channels,
        layers_per_block=_layers(shapes),
        max_frames=positions or kind.max_frames,
        num_attention_heads=heads,
        norm_num_groups=groups,
    )


def _from_metadata(text: str, path: Path) -> MotionConfig:
    try:
        given = json.loads(text)
        given["block_out_channels"] = tuple(given["block_out_channels"])
        given["betas"] = tuple(given["betas"])
        return MotionConfig(**given)
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{path}: its metadata {CONFIG_KEY} cannot be read ({error}); give the version by hand"
        ) from error


def _sniffed(channels: tuple[int, ...], mid: bool, positions: int | None, path: Path) -> str:
    """The version, by levels, mid block and number of positions."""
    if positions is None:
        choice = "v2 or animatelcm" if mid else "v1 or v3"
        if len(channels) == 3:
            choice = "sdxl-beta or hotshot-xl"
        raise CheckpointError(
            f"{path}: holds no positions, so it could be {choice}; say which with "
            "--motion-version (version= in Python, motion_version: in a prompt file)"
        )
    if len(channels) == 3:
        return "hotshot-xl" if positions == 24 else "sdxl-beta"
    if mid:
        return "v2"
    return "v1" if positions == 24 else "v3"


def _channels(shapes: Mapping[str, tuple[int, ...]], path: Path) -> tuple[int, ...]:
    suffix = ".motion_modules.0.temporal_transformer.norm.weight"
    levels: list[int] = []
    while (shape := shapes.get(f"down_blocks.{len(levels)}{suffix}")) is not None:
        levels.append(shape[0])
    if not levels:
        raise CheckpointError(
            f"{path}: lacks the first levels of a motion module; download it again"
        )
    return tuple(levels)


def _layers(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return 1 + max(
        int(match.group(2))
        for match in map(_SITE.match, shapes)
        if match and match.group(1) == "down_blocks.0"
    )


def _check_complete(motion: MotionModule, weights: Mapping[str, Tensor], path: Path) -> None:
    expected = {key: tuple(t.shape) for key, t in motion.state_dict().items()}
    missing = sorted(expected.keys() - weights.keys())
    unknown = sorted(weights.keys() - expected.keys())
    wrong = [k for k, t in weights.items() if k in expected and tuple(t.shape) != expected[k]]
    for what, keys in (("lacks", missing), ("has unknown", unknown), ("has misshapen", wrong)):
        if keys:
            raise CheckpointError(
                f"{path}: {what} {len(keys)} of {len(expected)} tensors of a "
                f"{motion.config.version} motion module, first {keys[0]}; "
                "download it again or give its version"
            )


def _is_position(key: str) -> bool:
    return key.endswith((".pos_encoder.pe", ".pos_embed.pe"))


def weights_in(path: Path) -> tuple[Path, dict[str, Any] | None]:
    """The weight file, and diffusers' settings where `path` is a MotionAdapter folder."""
    if not path.is_dir():
        return path, None
    for inner in (path, path / "motion_adapter"):
        config = inner / "config.json"
        files = sorted(inner.glob("diffusion_pytorch_model*.safetensors"))
        files += sorted(inner.glob("diffusion_pytorch_model*.bin"))
        if config.is_file() and files:
            settings = json.loads(config.read_text("utf-8"))
            if settings.get("_class_name") == "MotionAdapter":
                return files[0], settings
    ours = path / "motion_module.safetensors"
    if ours.is_file():
        return ours, None
    raise CheckpointError(f"{path}: holds no motion module; name a MotionAdapter folder or a file")


def _instead(tensors: Mapping[str, Tensor]) -> str:
    """What a file is, where it is no motion module."""
    if any("lora" in key for key in tensors):
        if any("motion_modules" in key for key in tensors):
            return "it is a MotionLoRA, which goes into motion_loras (--motion-lora)"
        return "it is a LoRA, which goes into loras (--lora)"
    if any(key.startswith(("model.diffusion_model.", "down_blocks.")) for key in tensors):
        return "it is an image model, which goes into base (--base)"
    return "none of its tensors belongs to one"
