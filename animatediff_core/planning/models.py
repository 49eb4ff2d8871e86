"""A model from its parts: base, VAE, LoRAs, embeddings, motion module, MotionLoRAs.

`generate` and `inject` both load through here, in fp32 and in one order, so that an injected
folder gives the same frames as its spec.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
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
from ..errors import AnimateDiffError, CheckpointError
from ..jobs import Adapter, kept_adapters, load_preset
from ..jobs.camera import Camera
from ..motion import MotionConfig
from ..weights.places import local_path
from ..weights.weight_file import open_weights
from .camera import motion_loras_of

FAMILY_PRESETS = {"SD1.5": "sd15-v3", "SDXL": "sdxl-beta", "levels 48, 96, 160": "tiny"}
"""Whose motion module a base model gets where none is named."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What a model is made of, as a job names it."""

    base: str
    variant: str | None = None
    motion: str | None = None
    motion_version: str | None = None
    vae: str | None = None
    prediction_type: str | None = None
    """What the UNet predicts, where the base model's files do not say it or are wrong."""
    loras: tuple[Adapter, ...] = ()
    motion_loras: tuple[Adapter, ...] = ()
    camera: Camera = field(default_factory=Camera)
    embeddings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FoundImageModel:
    """An image model's files, which are here and fit together."""

    spec: ModelSpec
    """With the adapters that the base model's own folder keeps, which come first, and the camera's
    moves among the MotionLoRAs."""
    base: Path
    block_out_channels: tuple[int, ...]
    """The UNet's channels."""
    vae_scale_factor: int
    """Pixels for one latent."""
    family: str
    """SD1.5, SD2, SDXL, or the UNet's channels."""


@dataclass(frozen=True, kw_only=True)
class FoundModel(FoundImageModel):
    """The same with a motion module."""

    motion: Path
    motion_config: MotionConfig


def find_model(spec: ModelSpec, *, offline: bool) -> FoundModel:
    """Locate every file (fetching from the hub) and check kinds and family by names and shapes.

    Nothing is loaded. Raises the first problem as CheckpointError or SurroundingsError.
    """
    image = _find_base(spec, offline)
    motion = _motion_place(image, offline)
    config = _motion_config(motion, spec.motion_version)
    if config.block_out_channels != image.block_out_channels:
        theirs = " and ".join(families_with(config.block_out_channels)) or family_of(
            config.block_out_channels, 0
        )
        raise CheckpointError(
            f"{motion}: is a motion module for {theirs} but {spec.base} is {image.family}; "
            "use a motion module of the base model's family"
        )
    moves = motion_loras_of(image.spec.camera, config, motion.name)
    loras = image.spec.motion_loras + moves
    image = replace(image, spec=replace(image.spec, motion_loras=loras, camera=Camera()))
    _check_beside(image, offline)
    return FoundModel(**vars(image), motion=motion, motion_config=config)


def find_image_model(spec: ModelSpec, *, offline: bool) -> FoundImageModel:
    """As `find`, for the image model alone, whatever would move it."""
    image = _find_base(spec, offline)
    image = replace(image, spec=replace(image.spec, motion_loras=()))
    _check_beside(image, offline)
    return image


def _find_base(spec: ModelSpec, offline: bool) -> FoundImageModel:
    base = local_path(spec.base, "base", variant=spec.variant, offline=offline)
    if base.is_file() and (report := identify(base)).kind != "base model":
        require(report, "base", spec.base)
    spec = _with_kept(spec, base)
    channels, width, factor = _base_shape(spec, base)
    return FoundImageModel(
        spec=spec,
        base=base,
        block_out_channels=channels,
        vae_scale_factor=factor,
        family=family_of(channels, width),
    )


def _check_beside(image: FoundImageModel, offline: bool) -> None:
    """The VAE and the adapters."""
    if image.spec.vae is not None:
        _check_vae(image.spec.vae, offline)
    _check_adapters(image.spec, image.family, offline)


def _with_kept(spec: ModelSpec, base: Path) -> ModelSpec:
    """The parts and what `inject --keep-adapters` left beside the base model. MotionLoRAs belong
    to the folder's own motion module."""
    kept = kept_adapters(base)
    ours = () if spec.motion is not None else kept["motion_lora"]
    return replace(spec, loras=kept["lora"] + spec.loras, motion_loras=ours + spec.motion_loras)


def _check_vae(source: str, offline: bool) -> None:
    place = local_path(source, "vae", offline=offline)
    if place.is_dir() and (place / "config.json").is_file():
        return
    what = "folder without config.json" if place.is_dir() else identify(place).kind
    if what not in ("VAE", "base model"):
        raise CheckpointError(f"{source}: is a {what}; name a VAE's folder or file")


def model_files(
    found: FoundImageModel, *, offline: bool
) -> Iterator[tuple[str, Path, float | None]]:
    """(role, path, scale) of every file that a model was made from."""
    spec = found.spec
    yield "base", found.base, None
    if spec.vae is not None:
        yield "vae", local_path(spec.vae, "vae", offline=offline), None
    if isinstance(found, FoundModel):
        yield "motion", found.motion, None
    for role, adapters in (("lora", spec.loras), ("motion_lora", spec.motion_loras)):
        for adapter in adapters:
            yield role, local_path(adapter.path, offline=offline), adapter.scale
    for path in spec.embeddings:
        yield "embedding", local_path(path, offline=offline), None


def raise_all(checks: Sequence[AnimateDiffError]) -> None:
    """Raise one error for all of several problems, or none."""
    if not checks:
        return
    worst = max(checks, key=lambda error: error.exit_code)
    told = list(dict.fromkeys(str(error) for error in checks))
    raise type(worst)("\n".join(told))


def _base_shape(spec: ModelSpec, base: Path) -> tuple[tuple[int, ...], int, int]:
    """Levels and text width of the UNet, pixels for one latent of the VAE."""
    if base.is_dir():
        return folder_shape(base, spec.base, spec.variant)
    kind = check_single_file(open_weights(base).shapes, spec.base, vae_given=spec.vae is not None)
    return (*unet_shape(kind.family), 8)


def _motion_place(image: FoundImageModel, offline: bool) -> Path:
    """The motion module: as named, else inside the base's folder, else its family's."""
    base, family = image.base, image.family
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
    """The module's configuration by shapes; a LoRA or image model here is refused by name."""
    content = read_motion(path)
    if not content.shapes:
        require(identify(path), "motion", path)
    return config_of(content, version=version, path=path)


def _check_adapters(spec: ModelSpec, family: str, offline: bool) -> None:
    embeddings = [(path, "embeddings") for path in spec.embeddings]
    loras = [(lora.path, "loras") for lora in spec.loras]
    motion_loras = [(lora.path, "motion_loras") for lora in spec.motion_loras]
    for source, key in (*loras, *motion_loras, *embeddings):
        report = require(identify(local_path(source, offline=offline)), key, source)
        fits = [family]
        if key == "motion_loras" and family in FOLDERS:
            fits = families_with(unet_shape(family)[0])  # a module for SD1.5 runs on SD2 as well
        if report.family in FOLDERS and family in FOLDERS and report.family not in fits:
            raise wrong_family(report, family, source, spec.base)
