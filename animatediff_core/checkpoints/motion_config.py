"""The configuration of a motion module by its names and shapes, checked before it is built.

A file's own words (our metadata, diffusers' config.json) count only where its tensors agree.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from ..errors import CheckpointError
from ..motion import VERSIONS, MotionConfig
from ..weights.files import printable
from ..weights.weight_file import Shapes
from .motion_files import MotionContent
from .motion_names import SITE, is_position

CONFIG_KEY = "animatediff_config"
"""Metadata entry of our own files: the MotionConfig as JSON."""
_MOST_LEVELS = 8
_MOST_LAYERS = 8
_MOST_CHANNELS = 8192
_MOST_FRAMES = 100_000
_SD15 = (320, 640, 1280, 1280)
_SDXL = (320, 640, 1280)


_DIFFUSERS_NAMES = {
    "layers_per_block": "motion_layers_per_block",
    "num_attention_heads": "motion_num_attention_heads",
    "norm_num_groups": "motion_norm_num_groups", "max_frames": "motion_max_seq_length",
    "block_out_channels": "block_out_channels", "mid_block": "use_motion_mid_block",
    "conv_in_channels": "conv_in_channels",
}  # fmt: skip
_Channels = Annotated[int, Field(gt=0, le=_MOST_CHANNELS)]
_Beta = Annotated[float, Field(gt=0, lt=1)]


@with_config(ConfigDict(strict=True, extra="forbid"))
class _Settings(TypedDict, total=False):
    """The fields of a MotionConfig within reason, before they are compared with the tensors."""

    block_out_channels: Annotated[
        tuple[_Channels, ...], Field(min_length=1, max_length=_MOST_LEVELS)
    ]
    layers_per_block: Annotated[int, Field(gt=0, le=_MOST_LAYERS)]
    max_frames: Annotated[int, Field(gt=0, le=_MOST_FRAMES)]
    mid_block: bool
    frame_norm: str
    resnet_norm: str
    version: str
    num_attention_heads: _Channels
    norm_num_groups: _Channels
    betas: tuple[_Beta, _Beta, Literal["linear", "scaled_linear", "squaredcos_cap_v2"]]
    timestep_spacing: str
    conv_in_channels: Annotated[int, Field(gt=0, le=999)] | None


_READER = TypeAdapter(_Settings)


class UnclearVersionError(CheckpointError):
    """The content fits several versions; the user must say which."""


def read_config(content: MotionContent, *, version: str | None, path: Path) -> MotionConfig:
    """The configuration that a file's tensors have; CheckpointError where they have none.

    `version` decides what the content leaves open, and is refused where the content says else.
    """
    if version is not None and version not in VERSIONS:
        raise CheckpointError(
            f"no motion module version {version!r}; there are {', '.join(VERSIONS)}"
        )
    shape = _structure(content.shapes, path)
    if CONFIG_KEY in content.metadata:
        config = _from_metadata(content.metadata[CONFIG_KEY], path)
        _check_agrees(asdict(config), shape, f"its metadata {CONFIG_KEY}", path)
        if version not in (None, config.version):
            raise CheckpointError(
                f"{path}: says that it is a {config.version} module, not {version}; "
                "leave the version out"
            )
        return config
    settings = _from_diffusers(content.settings or {}, path)
    _check_agrees(settings, shape, "its config.json", path)
    frames = settings.pop("max_frames", None) or shape.pop("max_frames", None)
    name = version or _sniffed(shape, frames, content, path)
    _check_version(name, shape, path)
    shape["max_frames"] = frames or VERSIONS[name].max_frames
    return _built(VERSIONS[name], {**settings, **shape}, path)


def look_alikes(config: MotionConfig, content: MotionContent) -> str | None:
    """Which other versions have the same tensors, in words for `inspect`; None if none has."""
    if CONFIG_KEY in content.metadata:
        return None
    if config.version == "v2":
        return "an AnimateDiff-Lightning file looks the same: then say --motion-version lightning"
    if content.dialect == "diffusers" and config.version == "v3":
        return "a converted v1 looks the same: then say --motion-version v1"
    return None


def _structure(shapes: Shapes, path: Path) -> dict[str, Any]:
    """Levels, layers, mid block, positions and conv_in, each within what a UNet can have."""
    for key in shapes:
        match = SITE.match(key)
        if match and max(len(match[1].rpartition("s.")[2]) * ("s." in match[1]), len(match[2])) > 2:
            raise CheckpointError(
                f"{path}: names a place {match[0][:60].rstrip('.')}, which no UNet has; "
                "use a motion module from its author's own page"
            )
    channels = _block_out_channels(shapes, path)
    layers = sum(f"down_blocks.0.motion_modules.{j}{_NORM}" in shapes for j in range(100))
    for count, most, what in (
        (len(channels), _MOST_LEVELS, "levels"),
        (layers, _MOST_LAYERS, "layers a block"),
        (max(channels), _MOST_CHANNELS, "channels"),
    ):
        if count > most:
            raise CheckpointError(f"{path}: has {count} {what}, but no UNet has more than {most}")
    lengths = {shape[1] for key, shape in shapes.items() if is_position(key) and len(shape) == 3}
    if len(lengths) > 1:
        raise CheckpointError(
            f"{path}: has {min(lengths)} and {max(lengths)} positions in different places; "
            "download it again"
        )
    return {
        "block_out_channels": channels,
        "layers_per_block": layers,
        "mid_block": any(key.startswith("mid_block.") for key in shapes),
        "conv_in_channels": shapes["conv_in.weight"][1] if "conv_in.weight" in shapes else None,
        **({"max_frames": lengths.pop()} if lengths else {}),
    }


_NORM = ".temporal_transformer.norm.weight"


def _block_out_channels(shapes: Shapes, path: Path) -> tuple[int, ...]:
    channels: list[int] = []
    while (shape := shapes.get(f"down_blocks.{len(channels)}.motion_modules.0{_NORM}")) is not None:
        channels.append(shape[0] if len(shape) == 1 else 0)
    if not channels or 0 in channels:
        raise CheckpointError(
            f"{path}: lacks the first levels of a motion module; download it again"
        )
    return tuple(channels)


def _sniffed(
    shape: Mapping[str, Any], positions: int | None, content: MotionContent, path: Path
) -> str:
    """The version, by conv_in, levels, mid block and number of positions."""
    levels, mid = len(shape["block_out_channels"]), shape["mid_block"]
    if shape["conv_in_channels"] is not None:
        return "pia"
    if content.dialect == "hotshot":
        return "hotshot-xl"
    if positions is None:
        choice = "v2, lightning or animatelcm" if mid else "v1 or v3"
        if levels == 3:
            choice = "sdxl-beta or hotshot-xl"
        raise UnclearVersionError(
            f"{path}: holds no positions, so it could be {choice}; say which with "
            "--motion-version (version= in Python, motion_version: in a prompt file)"
        )
    if levels == 3:
        return "hotshot-xl" if positions == 24 else "sdxl-beta"
    if mid:
        return "animatelcm" if content.dialect == "diffusers" and positions > 32 else "v2"
    return "v1" if positions == 24 else "v3"


def _check_version(name: str, shape: Mapping[str, Any], path: Path) -> None:
    """Raise CheckpointError if a version has another mid block, channels or conv_in."""
    kind = VERSIONS[name]
    wrong = None
    channels = shape["block_out_channels"]
    if kind.mid_block != shape["mid_block"]:
        wrong = f"has {'a' if shape['mid_block'] else 'no'} mid block"
    elif (kind.conv_in_channels is None) != (shape["conv_in_channels"] is None):
        wrong = "has a conv_in, as PIA has" if kind.conv_in_channels is None else "has no conv_in"
    elif channels in (_SD15, _SDXL) and channels != kind.block_out_channels:
        wrong = f"has the levels of {'SDXL' if channels == _SDXL else 'SD1.5'}"
    elif len(kind.block_out_channels) == 3 and len(channels) > 3:
        wrong = f"has {len(channels)} levels, not SDXL's three"
    if wrong:
        raise CheckpointError(
            f"{path}: {wrong}, so it is no {name} module; "
            "leave the version out or name the right one"
        )


def _from_metadata(text: str, path: Path) -> MotionConfig:
    try:
        settings = _READER.validate_json(text)
    except ValidationError as error:
        raise CheckpointError(
            f"{path}: its metadata {CONFIG_KEY} cannot be read ({_first(error, {})}); save the "
            "module again, or take the entry out and give the version by hand"
        ) from error
    return _built(MotionConfig(), settings, path)


def _from_diffusers(config: Mapping[str, Any], path: Path) -> _Settings:
    """diffusers' config.json in our names; one number if it has a list of equal ones by level."""
    settings = {}
    for key, name in _DIFFUSERS_NAMES.items():
        value = config.get(name)
        if isinstance(value, list) and key != "block_out_channels" and len({*map(str, value)}) == 1:
            value = value[0]
        if name in config:
            settings[key] = value
    try:
        return _READER.validate_json(json.dumps(settings))
    except ValidationError as error:
        raise CheckpointError(
            f"{path}: its config.json cannot be used ({_first(error, _DIFFUSERS_NAMES)}); "
            "use a MotionAdapter as its author published it"
        ) from error


def _first(error: ValidationError, names: Mapping[str, str]) -> str:
    """The first of pydantic's errors, in words; `names` are the file's own by ours."""
    first = error.errors(include_url=False)[0]
    if not first["loc"]:
        return str(first["msg"])
    name = str(first["loc"][0])
    return f"its {names.get(name, printable(name))} is {printable(first['input'])}: {first['msg']}"


def _check_agrees(
    settings: Mapping[str, Any], shape: Mapping[str, Any], who: str, path: Path
) -> None:
    for name, value in shape.items():
        if name in settings and settings[name] != value:
            raise CheckpointError(
                f"{path}: {who} says {name} {settings[name]} but its tensors have {value}; "
                "download it again"
            )


def _built(start: MotionConfig, changes: Mapping[str, Any], path: Path) -> MotionConfig:
    try:
        return replace(start, **changes)
    except ValueError as error:
        raise CheckpointError(f"{path}: cannot be a motion module: {error}") from error
