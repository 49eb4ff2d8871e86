"""The use case `train`: a configuration in, one safetensors file of the trained part out.

The output folder holds `state.pt` (resume), `loss.csv` and `loss.png`, `validation/`, and
the trained part: `motion_module.safetensors`, `lora.safetensors`, `embedding.safetensors`,
`ip_adapter.safetensors`, the folder `controlnet/`, or `unet.safetensors` with the whole model under
`base/`.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from ..checkpoints.base_model import BaseModel
from ..checkpoints.loading import load_base
from ..errors import MachineError, MediaError, TrainingError
from ..training.cache import LatentCache, encode_moments
from ..training.checkpointing import counting_kept, recompute_blocks
from ..training.clips import ClipFile, Clips, list_clips, read_pixels, unreadable_files
from ..training.config import TrainConfig
from ..training.loop import Loop, Step
from ..training.prior import make_prior, prior_files
from ..training.record import LossRecord
from ..training.stages import open_stage
from ..training.validation import validate

STATE_FILE = "state.pt"


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
    """The result of a dry run."""

    clips: int
    decoded: int
    loss: float
    memory: int
    """Peak bytes of this process, or of the CUDA device."""
    kept: int
    """Bytes of activations that the step kept for its backward."""


@dataclass(frozen=True)
class Prior:
    """Prior images of the base model are being made."""

    done: int
    total: int


Event = Encoding | Prior | Skipped | Step | Written | Checked


def run(
    config: TrainConfig,
    output: Path,
    *,
    resume: bool = False,
    dry_run: bool = False,
    offline: bool = False,
) -> Iterator[Event]:
    """Train one stage. `resume` continues from the output folder's state, if there is one.

    Raises TrainingError before anything is loaded if data or folder cannot be used.
    """
    files = list_clips(config)
    state = output / STATE_FILE
    if state.exists() and not resume and not dry_run:
        raise TrainingError(f"{output}: holds a run already; add --resume, or choose another -o")
    base = load_base(config.base, variant=config.variant, offline=offline)
    if config.prediction_type is not None:
        base.scheduler_config["prediction_type"] = config.prediction_type
    _check_size(config, base)
    stage = open_stage(config, base, offline=offline)
    cache = None
    if config.data.cache_folder is not None and not dry_run:
        cache = LatentCache(Path(config.data.cache_folder), base.vae, config.data.sample_size)
    prior = prior_files(config, output / "prior")
    clips = Clips(files, config, cache, prior, stage.condition)
    loop = Loop(config, stage, clips, base.vae)
    base.to(loop.accelerator.device, torch.float32)
    if dry_run:
        loop.clips.prior = files if prior else []  # stand-ins of the same size
    elif loop.accelerator.is_main_process:
        yield from (Prior(done, total) for done, total in make_prior(config, base, prior))
    loop.accelerator.wait_for_everyone()
    for model in (stage.animated or base.unet, stage.controlnet):
        if model is not None and config.gradient_checkpointing == "full":
            recompute_blocks(model)
    if dry_run:
        yield from _dry_run(loop, files)
        return
    if cache is not None:
        kept: list[ClipFile] = []
        yield from _encode([*files, *prior], config, base, cache, kept)
        loop.clips.files = [file for file in kept if file not in prior]
        loop.clips.prior = [file for file in kept if file in prior]
    if resume and state.exists():
        loop.resume(state)
    yield from _train(loop, base, output)


def _train(loop: Loop, base: BaseModel, output: Path) -> Iterator[Event]:
    config, stage, first = loop.config, loop.stage, loop.accelerator.is_main_process
    result = output / stage.file_name
    record = LossRecord(output, loop.step)
    for step in loop.steps():
        yield from (Skipped(reason) for reason in step.skipped)
        if step.loss != step.loss:
            raise TrainingError(
                f"step {step.step}: the loss is no number; lower learning_rate, or use bf16 or fp32"
            )
        record.add(step.step, step.loss, step.learning_rate)
        last = step.step == config.max_train_steps
        if first and (step.step % config.checkpointing_steps == 0 or last):
            loop.save(output / STATE_FILE)
            record.save()
            stage.write(loop.weights(), result)
            yield Written(result)
        if first and _validates(config, step.step):
            path = output / "validation" / f"step-{step.step}"
            with loop.averaged():
                yield Written(validate(config, base, stage.animated, path))
        yield step
    if first:
        stage.write(loop.weights(), result)
        if stage.export is not None:
            stage.export(loop.weights(), output)
        yield Written(result, final=True)


def _validates(config: TrainConfig, step: int) -> bool:
    given = config.validation
    regular = given.every > 0 and step % given.every == 0
    return bool(given.prompts) and (regular or step in given.at)


def _check_size(config: TrainConfig, base: BaseModel) -> None:
    for size in config.data.sample_size:
        if size % base.vae_scale_factor:
            raise TrainingError(
                f"sample_size {size} is no multiple of {base.vae_scale_factor}, as the VAE needs"
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
                raise unreadable_files(bad) from error
        yield Encoding(number, len(files))


def _encode_one(file: ClipFile, config: TrainConfig, base: BaseModel, cache: LatentCache) -> None:
    pixels = read_pixels(file.path, config.data.sample_size)
    moments = encode_moments(base.vae, pixels)
    flips = config.data.horizontal_flip
    flipped = encode_moments(base.vae, pixels.flip(3)) if flips else moments[:0]
    cache.write(file.path, moments, flipped)


def _dry_run(loop: Loop, files: Sequence[ClipFile]) -> Iterator[Event]:
    """Decode some clips, make one step in memory, and say what it took."""
    count = min(8, len(files))
    for number in range(count):
        yield from (Skipped(reason) for _, reason in loop.clips[number].unreadable)
    try:
        with counting_kept(loop.stage.loss.parameters()) as kept:
            step = next(loop.steps())
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise MachineError(
            "one training step does not fit into memory; set gradient_checkpointing to full, or "
            "lower train_batch_size, sample_size or sample_n_frames"
        ) from error
    yield Checked(len(files), count, step.loss, _peak_memory(), kept.num_bytes)


def _peak_memory() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return int(psutil.Process().memory_info().peak_wset)  # type: ignore[attr-defined]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes
