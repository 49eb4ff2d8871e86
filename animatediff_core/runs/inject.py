"""The use case `inject`: base, adapters and motion module as one folder, and as plain files.

A single file of the merged base model alone needs no motion module.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from ..adapters.lora.peft import lora_files
from ..checkpoints.base_model import BaseModel
from ..checkpoints.families import FOLDERS
from ..checkpoints.motion_module import save_motion_module
from ..checkpoints.write import (
    check_free,
    together,
    write_pipeline_folder,
    write_single_file,
)
from ..errors import AnimateDiffError, CheckpointError
from ..jobs import defaults_of
from ..motion import inflate
from ..planning.models import (
    FoundImageModel,
    FoundModel,
    ModelSpec,
    find_image_model,
    find_model,
    model_files,
)
from ..sampling.device import DTYPES
from ..sampling.loading import load_image_model, load_model
from ..weights.files import digest
from ..weights.places import local_path
from .difference import one_step_difference

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InjectPlan:
    """The parts of a model, all found and fitting, and the outputs to write."""

    found: FoundModel | FoundImageModel
    """The image model alone, if no output has a motion module."""
    output: Path | None
    """A folder for diffusers and for us."""
    motion_file: Path | None
    """One safetensors file of the motion module, official keys."""
    single_file: Path | None
    """One safetensors file of the merged base model, the first release's layout."""
    keep_adapters: bool
    """Whether LoRAs and MotionLoRAs stay files of their own in the folder."""
    dtype: torch.dtype

    @property
    def animated(self) -> FoundModel | None:
        """The found model, if it has a motion module."""
        return self.found if isinstance(self.found, FoundModel) else None

    @property
    def outputs(self) -> list[Path]:
        """The files and folders to write."""
        return [path for path in (self.output, self.motion_file, self.single_file) if path]


@dataclass(frozen=True)
class Injected:
    """The outputs that were written."""

    outputs: list[Path]
    difference: float | None
    """Relative L2 difference between our arithmetic and stock diffusers' after one UNet call; None
    if no output has a motion module."""


def plan(
    parts: ModelSpec,
    output: Path | None,
    *,
    motion_file: Path | None = None,
    single_file: Path | None = None,
    keep_adapters: bool = False,
    dtype: str = "fp32",
    offline: bool = False,
) -> InjectPlan:
    """Find and check every part and output; nothing is loaded or written."""
    if dtype not in DTYPES:
        raise AnimateDiffError(f"no dtype {dtype!r}; use {', '.join(DTYPES)}")
    _check_places(output, motion_file, single_file)
    if keep_adapters and (output is None or motion_file or single_file):
        raise AnimateDiffError(
            "--keep-adapters is for the folder: give -o, and leave --motion-file and "
            "--single-file out, which have no place for adapters"
        )
    alone = output is None and motion_file is None
    if alone and (parts.motion or parts.motion_version or parts.motion_loras):
        raise AnimateDiffError(
            "--single-file alone holds nothing that moves; leave --motion, --motion-version and "
            "--motion-lora out, or give -o FOLDER or --motion-file too"
        )
    found = (find_image_model if alone else find_model)(parts, offline=offline)
    if keep_adapters and dtype != "fp32" and (found.spec.loras or found.spec.motion_loras):
        raise AnimateDiffError(
            "--keep-adapters needs --dtype fp32: adapters that are merged into rounded weights "
            "give other frames"
        )
    if single_file is not None and found.family not in FOLDERS:
        raise CheckpointError(
            f"--single-file: {parts.base} is {found.family}, but the layout is only for "
            f"{', '.join(FOLDERS)}; leave it out"
        )
    kind = DTYPES[dtype]
    return InjectPlan(found, output, motion_file, single_file, keep_adapters, kind)


def _check_places(output: Path | None, motion_file: Path | None, single_file: Path | None) -> None:
    places = [path for path in (output, motion_file, single_file) if path is not None]
    if not places:
        raise AnimateDiffError("nothing to write; give -o FOLDER, --motion-file or --single-file")
    for file in (motion_file, single_file):
        if file is not None and file.suffix != ".safetensors":
            raise AnimateDiffError(f"{file}: must end in .safetensors, which is what is written")
    for place in places:
        check_free(place)
        others = [other.absolute() for other in places if other is not place]
        if place.absolute() in others or any(place.absolute() in o.parents for o in others):
            raise AnimateDiffError(
                f"{place}: two outputs would be in one place; give each its own, files outside "
                "the folder"
            )
    for file in (motion_file, single_file):
        if file is not None and file.exists():
            raise CheckpointError(f"{file}: exists already; choose another name")


def run(planned: InjectPlan, *, offline: bool = False) -> Injected:
    """Join and write; all outputs appear whole, or none does.

    UNet, text encoders and motion module are written in the plan's dtype, the VAE always in fp32:
    so the folder gives the same frames as its parts when both run in that dtype.
    """
    found, kept = planned.found, []
    if planned.keep_adapters:
        kept = [("lora", one) for one in found.spec.loras]
        kept += [("motion_lora", one) for one in found.spec.motion_loras]
        found = replace(found, spec=replace(found.spec, loras=(), motion_loras=()))
    motion, difference = None, None
    if isinstance(found, FoundModel):
        base, motion = load_model(found, dtype=planned.dtype, offline=offline)
        inflate(base.unet, motion).deflate()
        _check_numbers(planned, base, motion)
        difference = one_step_difference(base, motion)
    else:
        base = load_image_model(found, dtype=planned.dtype, offline=offline)
        _check_numbers(planned, base)
    with together(planned.outputs) as places:
        staged = dict(zip(planned.outputs, places, strict=True))
        if planned.output is not None and motion is not None:
            record = _record(planned, offline)
            files = [
                (role, one.scale, lora_files(local_path(one.path, offline=offline)))
                for role, one in kept
            ]
            write_pipeline_folder(base, motion, staged[planned.output], record, files)
        if planned.motion_file is not None and motion is not None:
            save_motion_module(motion, staged[planned.motion_file])
        if planned.single_file is not None:
            _write_single_file(planned.single_file, staged[planned.single_file], base)
    return Injected(planned.outputs, difference)


def _check_numbers(planned: InjectPlan, base: BaseModel, *others: nn.Module) -> None:
    """Reject a model that would write a weight that is no number."""
    for model in (base.unet, base.vae, *base.text_encoders, *others):
        for name, weight in model.state_dict().items():
            if not bool(weight.isfinite().all()):
                raise CheckpointError(
                    f"{planned.found.spec.base}: the {type(model).__name__}'s {name} holds values "
                    "that are no numbers; use another file, or lower the scales of LoRAs"
                )


def _write_single_file(path: Path, place: Path, base: BaseModel) -> None:
    if base.placeholder_tokens:
        message = "%s: has no place for new tokens, so %s stay out; load their files beside it"
        log.warning(message, path, ", ".join(base.placeholder_tokens))
    write_single_file(base, place)


def _record(planned: InjectPlan, offline: bool) -> dict[str, object]:
    """Where the model comes from, and the settings that suit it."""
    names = {kind: name for name, kind in DTYPES.items()}
    return {
        "animatediff": version("animatediff"),
        "dtype": names[planned.dtype],
        "sources": list(_sources(planned.found, offline)),
        "defaults": defaults_of(planned.found.spec.base),
    }


def _sources(found: FoundImageModel, offline: bool) -> Iterator[dict[str, object]]:
    for role, path, scale in model_files(found, offline=offline):
        source: dict[str, object] = {"role": role, "path": str(path), "sha256": digest(path)}
        if scale is not None:
            source["scale"] = scale
        yield source
