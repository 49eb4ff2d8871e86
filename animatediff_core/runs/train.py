"""The use case `train`: a configuration in, one safetensors file of the trained part out.

The output folder holds `state.pt` (resume), `loss.csv` and `loss.png`, `validation/`, and
`motion_module.safetensors` or `unet.safetensors` with, for the image stage, the whole model
under `base/`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints.base import BaseModel, load_base, resolve_file
from ..checkpoints.export import MOTION_FILE, write_base_folder
from ..checkpoints.files import read_tensors, write_tensors
from ..checkpoints.motion_modules import load_motion_module, save_motion_module
from ..diffusion.schedules import training_scheduler
from ..diffusion.text import encode
from ..errors import CheckpointError, MediaError, SurroundingsError, TrainingError
from ..media import open_video
from ..motion import AnimatedUNet, Betas, MotionConfig, MotionModule, for_unet, inflate
from ..training.cache import LatentCache, encode_moments
from ..training.clips import (
    PICTURE_SUFFIXES,
    ClipFile,
    Clips,
    bad_files_message,
    list_clips,
    to_pixels,
)
from ..training.config import TrainConfig
from ..training.loop import Encoders, Loop, Step
from ..training.record import LossRecord
from ..training.stages import Trainee, image_trainee, motion_trainee, use_fast_backward
from .validation import validate

STATE_FILE = "state.pt"
UNET_FILE = "unet.safetensors"


@dataclass(frozen=True)
class Encoding:
    """Latents are being cached."""

    done: int
    total: int


@dataclass(frozen=True)
class Skipped:
    """A file could not be read and is left out."""

    reason: str


@dataclass(frozen=True)
class Written:
    """A file is there: a state, a validation clip or the result."""

    path: Path
    final: bool = False


@dataclass(frozen=True)
class Checked:
    """What a dry run found."""

    clips: int
    decoded: int
    loss: float
    memory: int
    """Peak bytes of this process, or of the CUDA device."""


Event = Encoding | Skipped | Step | Written | Checked


def run(
    config: TrainConfig,
    output: Path,
    *,
    resume: bool = False,
    dry_run: bool = False,
    offline: bool = False,
) -> Iterator[Event]:
    """Train one stage. `resume` goes on from the output folder's state, where there is one.

    Raises TrainingError before anything is loaded where data or folder cannot be used.
    """
    files = list_clips(config)
    state = output / STATE_FILE
    if state.exists() and not resume and not dry_run:
        raise TrainingError(f"{output}: holds a run already; add --resume, or choose another -o")
    base = load_base(config.base, offline=offline)
    _check_size(config, base)
    model = _Model(config, base, offline)
    encoders = Encoders(base.vae, base.vae.config.scaling_factor, model.embed)
    cache = None
    if config.data.cache_folder is not None and not dry_run:
        cache = LatentCache(Path(config.data.cache_folder), base.vae, config.data.sample_size)
    loop = Loop(config, model.trainee, Clips(files, config, cache), encoders)
    base.to(loop.accelerator.device, torch.float32)
    use_fast_backward(base.unet)
    if dry_run:
        yield from _dry_run(loop, files)
        return
    if cache is not None:
        kept: list[ClipFile] = []
        yield from _encode(files, config, base, cache, kept)
        loop.clips.files = kept
    if resume and state.exists():
        loop.resume(state)
    yield from _train(loop, model, base, output)


def _train(loop: Loop, model: "_Model", base: BaseModel, output: Path) -> Iterator[Event]:
    config, first = loop.config, loop.accelerator.is_main_process
    record = LossRecord(output, loop.step)
    for step in loop.steps():
        yield from (Skipped(reason) for reason in step.bad)
        if step.loss != step.loss:
            raise TrainingError(
                f"step {step.step}: the loss is no number; lower learning_rate, or use bf16 or fp32"
            )
        record.add(step.step, step.loss, step.learning_rate)
        last = step.step == config.max_train_steps
        if first and (step.step % config.checkpointing_steps == 0 or last):
            loop.save(output / STATE_FILE)
            record.save()
            yield Written(model.write(loop.weights(), output))
        if first and _validates(config, step.step):
            path = output / "validation" / f"step-{step.step}"
            with loop.averaged():
                yield Written(validate(config, base, model.animated, path))
        yield step
    if first:
        yield Written(model.finish(loop.weights(), output), final=True)


def _validates(config: TrainConfig, step: int) -> bool:
    given = config.validation
    regular = given.every > 0 and step % given.every == 0
    return bool(given.prompts) and (regular or step in given.at)


class _Model:
    """The stage's model: what is trained, and how it is written."""

    def __init__(self, config: TrainConfig, base: BaseModel, offline: bool) -> None:
        self.base = base
        self.animated: AnimatedUNet | None = None
        self.motion_config: MotionConfig | None = None
        if config.unet is not None:
            _replace_unet(base, Path(config.unet))
        if config.stage == "image":
            kind = base.scheduler_config
            own = (kind["beta_start"], kind["beta_end"], kind["beta_schedule"])
            scheduler = training_scheduler(
                config.betas or own, prediction_type=base.prediction_type
            )
            self.trainee: Trainee = image_trainee(base.unet, scheduler)
            return
        motion = _motion(config, base, offline)
        self.motion_config = motion.config
        self.animated = inflate(base.unet, motion)
        scheduler = training_scheduler(motion.config.betas, prediction_type=base.prediction_type)
        self.trainee = motion_trainee(self.animated, scheduler)

    def embed(self, captions: Sequence[str]) -> Tensor:
        """Captions -> b n d."""
        return encode(self.base, captions)[0]

    def write(self, weights: dict[str, Tensor], output: Path) -> Path:
        """The trained part only, as safetensors."""
        if self.motion_config is None:
            write_tensors(output / UNET_FILE, weights, {"format": "pt"})
            return output / UNET_FILE
        with torch.device("meta"):
            motion = MotionModule(self.motion_config)
        motion.load_state_dict(weights, assign=True)
        save_motion_module(motion, output / MOTION_FILE)
        return output / MOTION_FILE

    def finish(self, weights: dict[str, Tensor], output: Path) -> Path:
        """The last file; the image stage also writes the whole model for `--base`."""
        path = self.write(weights, output)
        if self.motion_config is None:
            self.base.unet.load_state_dict(weights)
            write_base_folder(self.base, output / "base")
        return path


def _motion(config: TrainConfig, base: BaseModel, offline: bool) -> MotionModule:
    """The module to start from, or a fresh one with the run's own seed."""
    if config.motion is not None:
        path = Path(config.motion) if Path(config.motion).exists() else None
        path = path or resolve_file(config.motion, offline=offline)
        motion = load_motion_module(path, version=config.motion_version)
    else:
        unet = base.unet.config
        motion_config = for_unet(
            config.motion_version or "v3",
            unet.block_out_channels,
            layers_per_block=unet.layers_per_block,
            norm_num_groups=unet.norm_num_groups,
        )
        if config.max_frames is not None:
            motion_config = replace(motion_config, max_frames=config.max_frames)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            motion = MotionModule(motion_config)
    if config.betas is not None:
        motion.config = replace(motion.config, betas=_betas(config.betas))
    if config.num_frames > motion.config.max_frames:
        raise TrainingError(
            f"sample_n_frames {config.num_frames} is more than the module's "
            f"{motion.config.max_frames} positions; lower it, or set max_frames"
        )
    return motion


def _betas(given: Betas) -> Betas:
    start, end, schedule = given
    return float(start), float(end), str(schedule)


def _replace_unet(base: BaseModel, path: Path) -> None:
    """Put the image stage's weights into the base's UNet; both key lists must agree."""
    tensors = read_tensors(path).tensors
    own = base.unet.state_dict().keys()
    missing, unknown = sorted(own - tensors.keys()), sorted(tensors.keys() - own)
    if missing or unknown:
        raise CheckpointError(
            f"{path}: is no UNet of this base model ({len(missing)} tensors missing, "
            f"{len(unknown)} unknown); name the unet.safetensors that the image stage wrote"
        )
    base.unet.load_state_dict(tensors)


def _check_size(config: TrainConfig, base: BaseModel) -> None:
    for size in config.data.sample_size:
        if size % base.factor:
            raise TrainingError(
                f"sample_size {size} is no multiple of {base.factor}, as the VAE needs"
            )


def _encode(
    files: Sequence[ClipFile],
    config: TrainConfig,
    base: BaseModel,
    cache: LatentCache,
    kept: list[ClipFile],
) -> Iterator[Event]:
    """Cache the latents of every readable file; unreadable ones count against the budget."""
    bad: list[str] = []
    for number, file in enumerate(files, start=1):
        try:
            if not cache.has(file.path):
                _encode_one(file, config, base, cache)
            kept.append(file)
        except (MediaError, FileNotFoundError) as error:
            bad.append(
                str(error) if isinstance(error, MediaError) else f"{file.path}: no such video"
            )
            yield Skipped(bad[-1])
            if len(bad) > config.data.max_bad_files or len(bad) == len(files):
                raise TrainingError(bad_files_message(bad)) from error
        yield Encoding(number, len(files))


def _encode_one(file: ClipFile, config: TrainConfig, base: BaseModel, cache: LatentCache) -> None:
    if file.path.suffix.lower() in PICTURE_SUFFIXES:
        from ..media import read_picture

        frames = read_picture(file.path)[None]
    else:
        with open_video(file.path) as video:
            frames = video.read_all()
    pixels = to_pixels(frames, config.data.sample_size)
    moments = encode_moments(base.vae, pixels)
    flips = config.data.horizontal_flip
    flipped = encode_moments(base.vae, pixels.flip(3)) if flips else moments[:0]
    cache.write(file.path, moments, flipped)


def _dry_run(loop: Loop, files: Sequence[ClipFile]) -> Iterator[Event]:
    """Decode some clips, make one step in memory, and say what it took."""
    count = min(8, len(files))
    for number in range(count):
        yield from (Skipped(reason) for _, reason in loop.clips[number].bad)
    try:
        step = next(loop.steps())
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise SurroundingsError(
            "one training step does not fit into memory; lower train_batch_size, sample_size or "
            "sample_n_frames"
        ) from error
    yield Checked(len(files), count, step.loss, _peak_memory())


def _peak_memory() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
