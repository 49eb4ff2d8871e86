"""A model found from its parts: base, VAE, LoRAs, embeddings, motion module, MotionLoRAs.

Files are located, fetched from the hub if needed, and checked by names and shapes; no weights are
read.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from ..adapters.identify import identify
from ..checkpoints.diffusers_folder import folder_shape
from ..checkpoints.families import (
    FOLDERS,
    check_single_file,
    families_with,
    family_of,
    unet_shape,
)
from ..checkpoints.file_report import require, wrong_family
from ..checkpoints.motion_files import MOTION_FILE, read_motion
from ..checkpoints.motion_module import config_of
from ..errors import Check, CheckpointError, Problems, at
from ..jobs import Adapter, kept_adapters, load_preset
from ..jobs.camera import Camera
from ..motion import MotionConfig
from ..weights.places import local_path
from ..weights.weight_file import open_weights
from .camera import motion_loras_of

FAMILY_PRESETS = {"SD1.5": "sd15-v3", "SDXL": "sdxl-beta", "levels 48, 96, 160": "tiny"}
"""By family of the base model: the preset whose motion module it gets by default."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The parts of a model, as a job names them."""

    base: str
    variant: str | None = None
    motion: str | None = None
    motion_version: str | None = None
    vae: str | None = None
    prediction_type: str | None = None
    """Overrides what the base model's files say that the UNet predicts."""
    loras: tuple[Adapter, ...] = ()
    motion_loras: tuple[Adapter, ...] = ()
    camera: Camera = field(default_factory=Camera)
    embeddings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FoundImageModel:
    """An image model whose files are local and fit together."""

    spec: ModelSpec
    """Its parts, with the adapters bundled with the base model first, and with the camera's moves
    among the MotionLoRAs."""
    base_path: Path
    block_out_channels: tuple[int, ...]
    """Channels of the UNet's blocks."""
    vae_scale_factor: int
    """Pixels for one latent."""
    family: str
    """SD1.5, SD2, SDXL, or the UNet's channels."""


@dataclass(frozen=True, kw_only=True)
class FoundModel(FoundImageModel):
    """An image model with a motion module."""

    motion_path: Path
    motion_config: MotionConfig


def find_model(spec: ModelSpec, *, offline: bool) -> FoundModel:
    """Locate every file and check kinds and families; raises all problems in one error."""
    image = _find_base(spec, offline)
    problems, found = Problems(), None
    with problems.collecting():
        found = _with_motion(image, offline)
    image = found or image
    problems.run(_part_checks(image, offline))
    problems.check()
    assert isinstance(image, FoundModel)
    return image


def find_image_model(spec: ModelSpec, *, offline: bool) -> FoundImageModel:
    """`find_model` for the image model alone, without anything that moves it."""
    image = _find_base(spec, offline)
    image = replace(image, spec=replace(image.spec, motion_loras=()))
    problems = Problems()
    problems.run(_part_checks(image, offline))
    problems.check()
    return image


def model_files(
    found: FoundImageModel, *, offline: bool
) -> Iterator[tuple[str, Path, float | None]]:
    """(role, path, scale) of every file that a model is made from."""
    spec = found.spec
    yield "base", found.base_path, None
    if spec.vae is not None:
        yield "vae", local_path(spec.vae, "vae", offline=offline), None
    if isinstance(found, FoundModel):
        yield "motion", found.motion_path, None
    for role, adapters in (("lora", spec.loras), ("motion_lora", spec.motion_loras)):
        for adapter in adapters:
            yield role, local_path(adapter.path, offline=offline), adapter.scale
    for path in spec.embeddings:
        yield "embedding", local_path(path, offline=offline), None


def _find_base(spec: ModelSpec, offline: bool) -> FoundImageModel:
    with at("base"):
        path = local_path(spec.base, "base", variant=spec.variant, offline=offline)
        if path.is_file() and (report := identify(path)).kind != "base model":
            require(report, "base", spec.base)
        channels, text_width, vae_scale_factor = _base_shape(spec, path)
    return FoundImageModel(
        spec=_with_bundled_adapters(spec, path),
        base_path=path,
        block_out_channels=channels,
        vae_scale_factor=vae_scale_factor,
        family=family_of(channels, text_width),
    )


def _with_bundled_adapters(spec: ModelSpec, base: Path) -> ModelSpec:
    """The parts with the adapters that `inject --keep-adapters` wrote beside the base model. Its
    MotionLoRAs belong to the folder's own motion module."""
    bundled = kept_adapters(base)
    motion_loras = () if spec.motion is not None else bundled["motion_lora"]
    return replace(
        spec,
        loras=bundled["lora"] + spec.loras,
        motion_loras=motion_loras + spec.motion_loras,
    )


def _base_shape(spec: ModelSpec, base: Path) -> tuple[tuple[int, ...], int, int]:
    """Channels and text width of the UNet, scale factor of the VAE."""
    if base.is_dir():
        return folder_shape(base, spec.base, spec.variant)
    kind = check_single_file(open_weights(base).shapes, spec.base, vae_given=spec.vae is not None)
    return (*unet_shape(kind.family), 8)


def _with_motion(image: FoundImageModel, offline: bool) -> FoundModel:
    """The model with its motion module, and the camera's moves as MotionLoRAs."""
    with at("motion"):
        path = _motion_path(image, offline)
        config = _motion_config(path, image.spec.motion_version)
        _check_motion_family(config, path, image)
    with at("camera"):
        moves = motion_loras_of(image.spec.camera, config, path.name)
    loras = image.spec.motion_loras + moves
    image = replace(image, spec=replace(image.spec, motion_loras=loras, camera=Camera()))
    return FoundModel(**vars(image), motion_path=path, motion_config=config)


def _motion_path(image: FoundImageModel, offline: bool) -> Path:
    """The motion module: as named, else inside the base's folder, else its family's."""
    base, family = image.base_path, image.family
    named = image.spec.motion
    if named is None:
        if (base / MOTION_FILE).is_file():
            return base / MOTION_FILE
        beside = base.parent / MOTION_FILE
        if base.name == "base" and beside.is_file():
            return beside
        if family not in FAMILY_PRESETS:
            raise CheckpointError(
                f"{image.spec.base}: no motion module is known for its family ({family}); name "
                "one with --motion (motion: in a prompt file)"
            )
        named = str(load_preset(FAMILY_PRESETS[family])["motion"])
    return local_path(named, "motion", offline=offline)


def _motion_config(path: Path, version: str | None) -> MotionConfig:
    """The module's configuration, by its shapes; CheckpointError if the file is something else."""
    content = read_motion(path)
    if not content.shapes:
        require(identify(path), "motion", path)
    return config_of(content, version=version, path=path)


def _check_motion_family(config: MotionConfig, path: Path, image: FoundImageModel) -> None:
    channels = config.block_out_channels
    if channels != image.block_out_channels:
        made_for = " and ".join(families_with(channels)) or family_of(channels, 0)
        raise CheckpointError(
            f"{path}: is a motion module for {made_for} but {image.spec.base} is {image.family}; "
            "use a motion module of the base model's family"
        )


def _part_checks(image: FoundImageModel, offline: bool) -> Iterator[Check]:
    """Checks of the VAE and the adapters."""
    spec = image.spec
    if spec.vae is not None:
        yield "vae", partial(_check_vae, spec.vae, offline)
    adapters = [("loras", one.path) for one in spec.loras]
    adapters += [("motion_loras", one.path) for one in spec.motion_loras]
    adapters += [("embeddings", path) for path in spec.embeddings]
    for key, source in adapters:
        yield key, partial(_check_adapter, key, source, image, offline)


def _check_vae(source: str, offline: bool) -> None:
    path = local_path(source, "vae", offline=offline)
    if path.is_dir() and (path / "config.json").is_file():
        return
    kind = "folder without config.json" if path.is_dir() else identify(path).kind
    if kind not in ("VAE", "base model"):
        raise CheckpointError(f"{source}: is a {kind}; name a VAE's folder or file")


def _check_adapter(key: str, source: str, image: FoundImageModel, offline: bool) -> None:
    report = require(identify(local_path(source, offline=offline)), key, source)
    families = [image.family]
    if key == "motion_loras" and image.family in FOLDERS:
        families = families_with(image.block_out_channels)  # SD1.5's run on SD2 as well
    if {report.family, image.family} <= FOLDERS.keys() and report.family not in families:
        raise wrong_family(report, image.family, source, image.spec.base)
