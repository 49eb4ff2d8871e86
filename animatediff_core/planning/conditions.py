"""What leads a clip besides its prompt, checked before anything is loaded."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from ..adapters.control_files import ControlInfo, check_control_family
from ..adapters.identify import identify
from ..adapters.t2i_adapter import T2IInfo, t2i_form
from ..checkpoints.file_report import require, wrong_family
from ..diffusion.windows import divides, window_length
from ..errors import AnimateDiffError, CheckpointError, MediaError, PromptFileError
from ..jobs import Job
from ..jobs.choices import Fit
from ..jobs.conditions import Images
from ..media.image_source import ImageSource, check_images, spread
from ..weights.places import local_path
from .models import FoundModel

Value = TypeVar("Value")


def check_control(job: Job, found: FoundModel, *, offline: bool) -> None:
    """Every model is of the right kind and family, every picture there and of the right size.

    Raises the first problem; nothing is loaded.
    """
    try:
        _check_models(job, found, offline)
        for source in _sources(job):
            check_images(source)
        _check_starts(job, found)
    except MediaError as error:
        raise MediaError(f"{job.name}: {error}") from error
    except AnimateDiffError as error:
        raise type(error)(f"{job.name}: {error}") from error


def pictures_of(pictures: Images, job: Job) -> ImageSource:
    """Where the picture of every frame lies."""
    numbers = spread(job.frames, pictures.first, pictures.every)
    return ImageSource(Path(pictures.path), numbers, (job.width, job.height), pictures.fit)


def keyed(pictures: Mapping[int, str], frames: int, key: str) -> dict[int, Path]:
    """Pictures by frame of the clip, counted from its start and in order.

    Raises PromptFileError for a frame that the clip does not have; `key` names the field.
    """
    return {frame: Path(path) for frame, path in counted(pictures, frames, key).items()}


def counted(values: Mapping[int, Value], frames: int, key: str) -> dict[int, Value]:
    """Values by frame, counted from the clip's start and in order; the same error."""
    for number in values:
        if not -frames <= number < frames:
            raise PromptFileError(
                f"{key} names frame {number}, but the clip has {frames}; the last is -1"
            )
    return dict(sorted((number % frames, value) for number, value in values.items()))


def _sources(job: Job) -> Iterator[ImageSource]:
    for net in (*job.controlnets, *job.t2i_adapters):
        yield pictures_of(net.images, job)
    for region in job.regions:
        yield pictures_of(region.mask, job)
    if job.start is not None:
        yield pictures_of(job.start.images, job)
        if job.start.mask is not None:
            yield pictures_of(job.start.mask, job)
    if job.animate is not None:
        yield _single(Path(job.animate.image), job, job.animate.fit)
    for sparse in job.sparse_controls:
        for path in keyed(sparse.images, job.frames, "sparse_controls").values():
            yield _single(path, job, sparse.fit)
    if job.keyframes is not None:
        for path in keyed(job.keyframes.images, job.frames, "keyframes").values():
            yield _single(path, job, job.keyframes.fit)
    for adapter in job.ip_adapters:
        for path in keyed(adapter.images, job.frames, "ip_adapters").values():
            yield _single(path, job, "stretch")  # the encoder takes any size


def _single(path: Path, job: Job, fit: Fit) -> ImageSource:
    return ImageSource(path, (0,), (job.width, job.height), fit)


def _check_models(job: Job, found: FoundModel, offline: bool) -> None:
    for net in job.controlnets:
        counted(net.weights or {}, job.frames, "controlnets.weights")
        _control_info(net.path, "controlnets", found, offline)
    for one in job.t2i_adapters:
        counted(one.weights or {}, job.frames, "t2i_adapters.weights")
        _check_t2i_adapter(one.path, job, found, offline)
    for sparse in job.sparse_controls:
        longest = _control_info(sparse.path, "sparse_controls", found, offline).max_frames
        seen = job.frames
        if job.window is not None and divides(job.window, job.frames):
            seen = window_length(job.window, job.frames)
        if seen > longest:
            raise CheckpointError(
                f"{sparse.path}: knows {longest} frames at most, but {seen} are denoised together; "
                f"set window.length (-C) to {longest} or less"
            )
    for adapter in job.ip_adapters:
        counted(adapter.weights or {}, job.frames, "ip_adapters.weights")
        report = identify(local_path(adapter.path, offline=offline))
        require(report, "ip_adapters", adapter.path)
        if report.family not in ("unknown", found.family) and "levels" not in found.family:
            raise wrong_family(report, found.family, adapter.path)
        local_path(adapter.encoder, "image encoder", offline=offline)


def _check_t2i_adapter(source: str, job: Job, found: FoundModel, offline: bool) -> None:
    path = local_path(source, "control", offline=offline)
    info = require(identify(path), "t2i_adapters", source)
    assert isinstance(info, T2IInfo)
    form = t2i_form(info, found.motion_config.block_out_channels, found.vae_scale_factor, source)
    for scale in (1.0, job.upscale.scale if job.upscale else 1.0):
        width, height = round(job.width * scale), round(job.height * scale)
        if width % form.downscale_factor or height % form.downscale_factor:
            raise CheckpointError(
                f"{source}: reads pictures whose width and height are multiples of "
                f"{form.downscale_factor}, but the clip is {width} x {height}"
            )


def _control_info(source: str, key: str, found: FoundModel, offline: bool) -> ControlInfo:
    """A ControlNet or SparseCtrl encoder, which fits the base model."""
    info = require(identify(local_path(source, "control", offline=offline)), key, source)
    assert isinstance(info, ControlInfo)
    check_control_family(info, found.family, source)
    return info


def _check_starts(job: Job, found: FoundModel) -> None:
    """What a clip begins from, and what it begins with, go together."""
    counted(job.motion_strength.frames or {}, job.frames, "motion_strength.frames")
    known = _blocks(found)
    for name in job.motion_strength.blocks or {}:
        if name not in known:
            raise PromptFileError(
                f"motion_strength.blocks names {name}, but the module's are {', '.join(known)}"
            )
    for region in job.regions:
        if 0 not in counted(region.prompt, job.frames, "regions.prompt"):
            raise PromptFileError("regions.prompt must have a text for frame 0")
    pia = found.motion_config.conv_in_channels is not None
    if pia and job.animate is None:
        raise CheckpointError(
            f"{found.motion.name} is a PIA module, which animates a picture; name it with animate, "
            "or use another motion module"
        )
    if job.animate is not None and not pia:
        raise CheckpointError(
            f"animate needs a PIA motion module, but {found.motion.name} is "
            f"{found.motion_config.version}; for other modules keyframes make a clip of a picture"
        )
    begins = job.start is not None or (job.keyframes is not None and job.keyframes.strength < 1)
    if begins and job.free_init is not None:
        raise PromptFileError(
            "free_init begins from noise alone; it does not go with start, nor with keyframes "
            "whose strength is below 1"
        )


def _blocks(found: FoundModel) -> list[str]:
    """The blocks of the UNet in which the motion module acts."""
    levels = range(len(found.motion_config.block_out_channels))
    middle = ["mid_block"] if found.motion_config.mid_block else []
    return [*(f"down_blocks.{i}" for i in levels), *middle, *(f"up_blocks.{i}" for i in levels)]
