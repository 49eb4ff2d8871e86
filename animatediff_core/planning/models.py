"""A model found from its parts: base, VAE, LoRAs, embeddings, motion module, MotionLoRAs.

Files are located, fetched from the hub if needed, and loaded without values: the loaders check
names and shapes, and nothing but headers is read.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from ..adapters.fit import check_fit, check_motion_lora, with_own_words
from ..adapters.identify import identify
from ..checkpoints.base_model import BaseModel
from ..checkpoints.families import families_with, family_of
from ..checkpoints.file_report import require
from ..checkpoints.loading import load_parts
from ..checkpoints.motion_files import MOTION_FILE, read_motion
from ..checkpoints.motion_module import load_motion_module
from ..errors import Check, CheckpointError, Problems, at
from ..jobs import Adapter, Embedding, kept_adapters, load_preset
from ..jobs.camera import Camera
from ..motion import MotionConfig, MotionModule, inflate
from ..weights.places import local_path
from .camera import motion_loras_of

FAMILY_PRESETS = {"SD1.5": "sd15-v3", "SDXL": "sdxl-beta", "UNet 48-96-160": "tiny"}
"""By family of the base model: the preset whose motion module it gets by default."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The parts of a model, as a job names them."""

    base: str
    variant: str | None = None
    motion: str | None = None
    motion_version: str | None = None
    unet: str | None = None
    vae: str | None = None
    prediction_type: str | None = None
    """Overrides what the base model's files say that the UNet predicts."""
    loras: tuple[Adapter, ...] = ()
    motion_loras: tuple[Adapter, ...] = ()
    camera: Camera = field(default_factory=Camera)
    embeddings: tuple[Embedding, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FoundImageModel:
    """An image model whose files are local and fit together."""

    spec: ModelSpec
    """Its parts, with the adapters bundled with the base model first, and with the camera's moves
    among the MotionLoRAs."""
    base_path: Path
    base: BaseModel = field(repr=False, compare=False)
    """Its parts without values."""

    @property
    def family(self) -> str:
        """SD1.5, SD2, SDXL, or the UNet's channels."""
        return self.base.family

    @property
    def vae_scale_factor(self) -> int:
        """Pixels for one latent."""
        return self.base.vae_scale_factor


@dataclass(frozen=True, kw_only=True)
class FoundModel(FoundImageModel):
    """An image model with a motion module."""

    motion_path: Path
    motion: MotionModule = field(repr=False, compare=False)
    """The module without values."""

    @property
    def motion_config(self) -> MotionConfig:
        """The structure of the motion module."""
        return self.motion.config


Bases = dict[tuple[Path, str | None, bool], BaseModel]
"""Base models without values, by path, variant and whether the VAE is their own."""


def find_model(spec: ModelSpec, *, offline: bool, bases: Bases | None = None) -> FoundModel:
    """Locate every file and check kinds and fits; raises all problems in one error.

    Base models without values are shared through `bases`.
    """
    image = _find_base(spec, offline, {} if bases is None else bases)
    problems, found = Problems(), None
    with problems.collecting():
        found = _with_motion(image, offline)
    problems.run(_part_checks(found or image, offline))
    problems.check()
    assert found is not None
    return found


def find_image_model(spec: ModelSpec, *, offline: bool) -> FoundImageModel:
    """`find_model` for the image model alone, without anything that moves it."""
    image = _find_base(spec, offline, {})
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
    if spec.unet is not None:
        yield "unet", local_path(spec.unet, "control", offline=offline), None
    if spec.vae is not None:
        yield "vae", local_path(spec.vae, "vae", offline=offline), None
    if isinstance(found, FoundModel):
        yield "motion", found.motion_path, None
    for role, adapters in (("lora", spec.loras), ("motion_lora", spec.motion_loras)):
        for adapter in adapters:
            yield role, local_path(adapter.path, offline=offline), adapter.scale
    for one in spec.embeddings:
        yield "embedding", local_path(one.path, offline=offline), None


def _find_base(spec: ModelSpec, offline: bool, bases: Bases) -> FoundImageModel:
    with at("base"):
        path = local_path(spec.base, "base", variant=spec.variant, offline=offline)
        if path.is_file() and (report := identify(path)).kind != "base model":
            require(report, "base", spec.base)
        own_vae = spec.vae is None
        key = (path, spec.variant, own_vae)
        if key not in bases:
            with torch.device("meta"):
                bases[key] = load_parts(path, spec.base, spec.variant, None, own_vae=own_vae)
    return FoundImageModel(spec=_with_bundled_adapters(spec, path), base_path=path, base=bases[key])


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


def _with_motion(image: FoundImageModel, offline: bool) -> FoundModel:
    """The model with its motion module, and the camera's moves as MotionLoRAs."""
    with at("motion"):
        path = _motion_path(image, offline)
        if not read_motion(path).shapes:
            require(identify(path), "motion", path)
        with torch.device("meta"):
            motion = load_motion_module(path, version=image.spec.motion_version, dtype=None)
        _check_motion_family(motion.config, path, image)
        inflate(image.base.unet, motion).deflate()
    with at("camera"):
        moves = motion_loras_of(image.spec.camera, motion.config, path.name)
    loras = image.spec.motion_loras + moves
    spec = replace(image.spec, motion_loras=loras, camera=Camera())
    return FoundModel(**{**vars(image), "spec": spec}, motion_path=path, motion=motion)


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


def _check_motion_family(config: MotionConfig, path: Path, image: FoundImageModel) -> None:
    channels = config.block_out_channels
    if channels != tuple(image.base.unet.config.block_out_channels):
        made_for = " and ".join(families_with(channels)) or family_of(channels, 0)
        raise CheckpointError(
            f"{path}: is a motion module for {made_for} but {image.spec.base} is {image.family}; "
            "use a motion module of the base model's family"
        )


def _part_checks(image: FoundImageModel, offline: bool) -> Iterator[Check]:
    """Checks of the VAE and the adapters."""
    spec = image.spec
    base = with_own_words(image.base) if spec.embeddings else image.base
    own = [("unet", spec.unet), ("vae", spec.vae)]
    parts = [(key, source) for key, source in own if source is not None]
    parts += [("loras", one.path) for one in spec.loras]
    for key, source in parts:
        yield key, partial(check_fit, key, source, base, offline=offline)
    for embedding in spec.embeddings:
        path, word = embedding.path, embedding.word
        yield "embeddings", partial(check_fit, "embeddings", path, base, offline=offline, word=word)
    if isinstance(image, FoundModel):
        for one in spec.motion_loras:
            yield (
                "motion_loras",
                partial(check_motion_lora, one.path, image.motion, offline=offline),
            )
