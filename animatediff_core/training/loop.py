"""The training loop: yields one report a step, saves its whole state, resumes to the bit.

Nothing random is kept between steps: noise, timesteps and samples depend on seed, step and rank
alone, so the state is the weights, the optimizer and the number of steps.

Legend: b batch, f frames, c channels, h w latent size.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from ..errors import TrainingError
from ..media import replacing
from ..motion import Conditions
from .cache import encode_moments, sample_latents
from .clips import Batch, Clips, bad_files_message, collated
from .config import TrainConfig
from .stages.stage import Trainee, timestep_draw


@dataclass(frozen=True)
class Step:
    """One optimizer step is done."""

    step: int
    loss: float
    """Mean over the step's samples."""
    learning_rate: float
    gradient_norm: float
    """Before clipping."""
    seconds: float
    waited: float
    """Seconds of those in which nothing but the next samples was waited for."""
    bad: tuple[str, ...] = ()
    """Reasons why files were skipped, each told once."""


@dataclass(frozen=True)
class Encoders:
    """What turns a sample into the loss's inputs, frozen."""

    vae: Any
    """AutoencoderKL, for samples that are pixels."""
    scaling_factor: float
    embed: Callable[[Sequence[str]], tuple[Tensor, Conditions | None]]
    """Captions -> b n d, and what SDXL reads besides."""


class Loop:
    """One run: `steps()` advances it; `save` and `resume` move it to and from the disk."""

    def __init__(
        self, config: TrainConfig, trainee: Trainee, clips: Clips, encoders: Encoders
    ) -> None:
        self.config = config
        self.trainee = trainee
        self.clips = clips
        self.encoders = encoders
        self.accelerator = _accelerator(config.mixed_precision)
        self.step = 0
        self.skipped: dict[int, str] = {}
        self.parameters: list[Tensor] = list(trainee.parameters.values())
        optimizer = torch.optim.AdamW(
            self.parameters,
            lr=config.learning_rate,
            betas=config.adam_betas,
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.loss, self.optimizer = self.accelerator.prepare(trainee.loss, optimizer)
        self.average = [p.detach().clone() for p in self.parameters] if config.ema_decay else []
        self.draw_timesteps = timestep_draw(
            config.timestep_sampling, config.logit_mean, config.logit_std
        )

    def steps(self) -> Iterator[Step]:
        """Train from where it stands to `max_train_steps`."""
        samples = iter(self._loader())
        while self.step < self.config.max_train_steps:
            losses, new_bad = [], []
            begun, waited = time.perf_counter(), 0.0
            for micro in range(self.config.gradient_accumulation_steps):
                asked = time.perf_counter()
                batch: Batch = next(samples)
                waited += time.perf_counter() - asked
                new_bad += self._note_bad(batch)
                with self._sync(micro):
                    losses.append(self._backward(batch, micro))
            norm = self._update()
            loss = float(self.accelerator.gather(torch.stack(losses)).mean())
            yield Step(
                step=self.step,
                loss=loss,
                learning_rate=self.optimizer.param_groups[0]["lr"],
                gradient_norm=float(norm),
                seconds=time.perf_counter() - begun,
                waited=waited,
                bad=tuple(new_bad),
            )

    def _sync(self, micro: int) -> Any:
        """Gradients travel between processes only at the last micro-step."""
        last = micro + 1 == self.config.gradient_accumulation_steps
        return nullcontext() if last else self.accelerator.no_sync(self.loss)

    def _backward(self, batch: Batch, micro: int) -> Tensor:
        accelerator = self.accelerator
        number = self.step * self.config.gradient_accumulation_steps + micro
        seed = (self.config.seed * 1_000_003 + number) * accelerator.num_processes
        generator = torch.Generator().manual_seed(seed + accelerator.process_index)
        latents = self._latents(batch, generator)  # b c f h w
        noise = torch.randn(latents.shape, generator=generator).to(latents, non_blocking=True)
        timesteps = self.draw_timesteps(len(batch.captions), generator)
        timesteps = timesteps.to(latents.device, non_blocking=True)
        text, conditions = self.encoders.embed(batch.captions)
        seen = batch.conditions
        given = () if seen is None else (seen.to(latents.device, non_blocking=True),)
        with accelerator.autocast():
            loss = self.loss(latents, noise, timesteps, text, conditions, *given)
        accelerator.backward(loss / self.config.gradient_accumulation_steps)
        detached: Tensor = loss.detach()
        return detached

    def _latents(self, batch: Batch, generator: torch.Generator) -> Tensor:
        frames = batch.frames.to(self.accelerator.device, non_blocking=True)
        if self.clips.cache is None:
            frames = encode_moments(self.encoders.vae, frames)  # (b f) 2c h w
        latents = sample_latents(frames, self.encoders.scaling_factor, generator)
        clips: Tensor = latents.unflatten(0, (len(batch.captions), -1)).transpose(1, 2)
        return clips

    def _update(self) -> Tensor:
        """Clip, step, average."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        norm = self.accelerator.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        if self.average:
            decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(self.average, self.parameters, 1 - decay)
        return torch.as_tensor(norm)

    def _note_bad(self, batch: Batch) -> list[str]:
        """Tell each unreadable file once; too many end the run."""
        found = dict(batch.bad)
        new = [reason for i, reason in found.items() if i not in self.skipped]
        self.skipped |= found
        if len(self.skipped) > self.config.data.max_bad_files:
            raise TrainingError(bad_files_message(list(self.skipped.values())))
        return new

    def _loader(self) -> DataLoader[Any]:
        return DataLoader(
            self.clips,
            batch_sampler=_Numbers(self),
            num_workers=self.config.data.num_workers,
            collate_fn=collated,
            pin_memory=self.accelerator.device.type == "cuda",
        )

    def weights(self) -> dict[str, Tensor]:
        """The trained tensors to write: the moving average where there is one."""
        tensors = self.average or self.parameters
        return {
            name: tensor.detach().clone()
            for name, tensor in zip(self.trainee.parameters, tensors, strict=True)
        }

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it the model has the averaged weights, where there are any."""
        if not self.average:
            yield
            return
        with torch.no_grad():
            kept = [p.detach().clone() for p in self.parameters]
            torch._foreach_copy_(self.parameters, self.average)
            try:
                yield
            finally:
                torch._foreach_copy_(self.parameters, kept)

    def save(self, path: Path) -> None:
        """Everything that `resume` needs, written beside and renamed."""
        state = {
            "step": self.step,
            "weights": [p.detach() for p in self.parameters],
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "skipped": self.skipped,
        }
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        with replacing(path) as beside, beside.open("wb") as file:
            torch.save(state, file)

    def resume(self, path: Path) -> None:
        """Go on from a saved state."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        shapes = [tuple(t.shape) for t in state["weights"]]
        if shapes != [tuple(p.shape) for p in self.parameters]:
            raise TrainingError(
                f"{path}: was saved by a run with another model; resume with the configuration "
                "that it was started with, or choose another output folder"
            )
        with torch.no_grad():
            for parameter, saved in zip(self.parameters, state["weights"], strict=True):
                parameter.copy_(saved)
            for average, saved in zip(self.average, state["average"], strict=True):
                average.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.skipped = state["step"], state["skipped"]


def _accelerator(mixed_precision: str) -> Accelerator:
    AcceleratorState._reset_state()  # an earlier run in this process may have had another precision
    try:
        accelerator = Accelerator(mixed_precision=mixed_precision)
    except ValueError as error:
        raise _unfit(mixed_precision) from error
    if mixed_precision == "fp16" and accelerator.scaler is None:
        raise _unfit(mixed_precision)  # gradients would vanish
    return accelerator


def _unfit(mixed_precision: str) -> TrainingError:
    return TrainingError(
        f"mixed_precision {mixed_precision} does not work on this machine; use no, or bf16"
    )


class _Numbers(Sampler[list[int]]):
    """The numbers of the samples that this process sees, from the loop's step on."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop

    def __iter__(self) -> Iterator[list[int]]:
        config, accelerator = self.loop.config, self.loop.accelerator
        micro = self.loop.step * config.gradient_accumulation_steps
        last = config.max_train_steps * config.gradient_accumulation_steps
        for number in range(micro, last):
            first = (number * accelerator.num_processes + accelerator.process_index) * (
                config.train_batch_size
            )
            yield list(range(first, first + config.train_batch_size))


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of one step: linear warm-up, then constant, or falling to 0 at the end."""
    if step < config.lr_warmup_steps:
        return config.learning_rate * (step + 1) / config.lr_warmup_steps
    if config.lr_scheduler == "constant":
        return config.learning_rate
    done = (step - config.lr_warmup_steps) / max(config.max_train_steps - config.lr_warmup_steps, 1)
    falling = 1 - done if config.lr_scheduler == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.learning_rate * falling
