"""The training loop: yields one report a step, saves its whole state, resumes bit for bit.

Noise, timesteps and samples depend only on seed, step and rank, so the state is the weights, the
optimizer and the number of steps.

Legend: b batch, f frames, c channels, h w latent size.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.models import AutoencoderKL
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from ..errors import TrainingError
from ..media.atomic import atomic_write
from .cache import encode_moments, sample_latents
from .clips import Batch, Clips, collate, unreadable_files
from .config import TrainConfig
from .stage import Stage


@dataclass(frozen=True)
class Step:
    """Report of one optimizer step."""

    step: int
    loss: float
    """Mean over the step's samples."""
    learning_rate: float
    gradient_norm: float
    """Before clipping."""
    seconds: float
    waited: float
    """Seconds spent waiting for the next samples."""
    skipped: tuple[str, ...] = ()
    """Reasons why files were skipped, each reported once."""


class Loop:
    """One run: `steps()` advances it; `save` and `resume` write and read its state."""

    def __init__(self, config: TrainConfig, stage: Stage, clips: Clips, vae: AutoencoderKL) -> None:
        self.config, self.stage, self.clips, self.vae = config, stage, clips, vae
        self.accelerator = _accelerator(config.mixed_precision)
        self.step = 0
        self.skipped: dict[int, str] = {}
        self.parameters: list[Tensor] = list(stage.parameters.values())
        optimizer = torch.optim.AdamW(
            self.parameters,
            lr=config.learning_rate,
            betas=config.adam_betas,
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.loss, self.optimizer = self.accelerator.prepare(stage.loss, optimizer)
        self.average = [p.detach().clone() for p in self.parameters] if config.ema_decay else []

    def steps(self) -> Iterator[Step]:
        """Train from the current step to `max_train_steps`."""
        samples = iter(self._loader())
        while self.step < self.config.max_train_steps:
            losses, skipped = [], []
            started, waited = time.perf_counter(), 0.0
            for micro in range(self.config.gradient_accumulation_steps):
                waiting = time.perf_counter()
                batch: Batch = next(samples)
                waited += time.perf_counter() - waiting
                skipped += self._skip_unreadable(batch)
                with self._accumulate(micro):
                    losses.append(self._backward(batch, micro))
            norm = self._update()
            loss = float(self.accelerator.gather(torch.stack(losses)).mean())
            yield Step(
                step=self.step,
                loss=loss,
                learning_rate=self.optimizer.param_groups[0]["lr"],
                gradient_norm=float(norm),
                seconds=time.perf_counter() - started,
                waited=waited,
                skipped=tuple(skipped),
            )

    def _accumulate(self, micro: int) -> Any:
        """Gradients are synchronised between processes only at the last micro-step."""
        last = micro + 1 == self.config.gradient_accumulation_steps
        return nullcontext() if last else self.accelerator.no_sync(self.loss)

    def _backward(self, batch: Batch, micro: int) -> Tensor:
        accelerator = self.accelerator
        number = self.step * self.config.gradient_accumulation_steps + micro
        seed = (self.config.seed * 1_000_003 + number) * accelerator.num_processes
        generator = torch.Generator().manual_seed(seed + accelerator.process_index)
        latents = self._latents(batch, generator)  # b c f h w
        noise = torch.randn(latents.shape, generator=generator).to(latents, non_blocking=True)
        timesteps = draw_timesteps(self.config, len(batch.captions), generator)
        timesteps = timesteps.to(latents.device, non_blocking=True)
        inputs = [latents, noise, timesteps, *self.stage.embed(batch.captions)]
        if batch.conditions is not None:
            inputs.append(batch.conditions.to(latents.device, non_blocking=True))
        with accelerator.autocast():
            loss = self.loss(*inputs)
        accelerator.backward(loss / self.config.gradient_accumulation_steps)
        detached: Tensor = loss.detach()
        return detached

    def _latents(self, batch: Batch, generator: torch.Generator) -> Tensor:
        frames = batch.frames.to(self.accelerator.device, non_blocking=True)
        if self.clips.cache is None:
            frames = encode_moments(self.vae, frames)  # (b f) 2c h w
        latents = sample_latents(frames, self.vae.config.scaling_factor, generator)
        clips: Tensor = latents.unflatten(0, (len(batch.captions), -1)).transpose(1, 2)
        return clips

    def _update(self) -> Tensor:
        """Clip the gradients, step, update the average; returns the gradient norm."""
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

    def _skip_unreadable(self, batch: Batch) -> list[str]:
        """Reasons of newly unreadable files; too many end the run."""
        found = dict(batch.unreadable)
        new = [reason for i, reason in found.items() if i not in self.skipped]
        self.skipped |= found
        if len(self.skipped) > self.config.data.max_bad_files:
            raise unreadable_files(list(self.skipped.values()))
        return new

    def _loader(self) -> DataLoader[Any]:
        return DataLoader(
            self.clips,
            batch_sampler=_Numbers(self),
            num_workers=self.config.data.num_workers,
            collate_fn=collate,
            pin_memory=self.accelerator.device.type == "cuda",
        )

    def weights(self) -> dict[str, Tensor]:
        """The trained tensors to write: the moving average, if there is one."""
        tensors = self.average or self.parameters
        return {
            name: tensor.detach().clone()
            for name, tensor in zip(self.stage.parameters, tensors, strict=True)
        }

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Context manager: the model temporarily has the averaged weights, if there are any."""
        if not self.average:
            yield
            return
        with torch.no_grad():
            weights = [p.detach().clone() for p in self.parameters]
            torch._foreach_copy_(self.parameters, self.average)
            try:
                yield
            finally:
                torch._foreach_copy_(self.parameters, weights)

    def save(self, path: Path) -> None:
        """Write everything that `resume` needs."""
        state = {
            "step": self.step,
            "weights": [p.detach() for p in self.parameters],
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "skipped": self.skipped,
        }
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            torch.save(state, file)

    def resume(self, path: Path) -> None:
        """Continue from a saved state."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        shapes = [tuple(t.shape) for t in state["weights"]]
        if shapes != [tuple(p.shape) for p in self.parameters]:
            raise TrainingError(
                f"{path}: was saved by a run with another model; resume with its configuration, or "
                "choose another output folder"
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
    AcceleratorState._reset_state()  # an earlier run of this process may have another precision
    unsupported = TrainingError(
        f"mixed_precision {mixed_precision} does not work on this machine; use no, or bf16"
    )
    try:
        accelerator = Accelerator(mixed_precision=mixed_precision)
    except ValueError as error:
        raise unsupported from error
    if mixed_precision == "fp16" and accelerator.scaler is None:
        raise unsupported  # gradients would vanish
    return accelerator


class _Numbers(Sampler[list[int]]):
    """Sample numbers of this process, from the loop's current step."""

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
    """The rate of one step: linear warm-up, then constant or decaying to 0."""
    if step < config.lr_warmup_steps:
        return config.learning_rate * (step + 1) / config.lr_warmup_steps
    if config.lr_scheduler == "constant":
        return config.learning_rate
    done = (step - config.lr_warmup_steps) / max(config.max_train_steps - config.lr_warmup_steps, 1)
    decay = 1 - done if config.lr_scheduler == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.learning_rate * decay


def draw_timesteps(config: TrainConfig, count: int, generator: torch.Generator) -> Tensor:
    """Random timesteps in 0..999: uniform, or logit-normal (arXiv 2403.03206, section 3.1)."""
    if config.timestep_sampling == "uniform":
        return torch.randint(0, 1000, (count,), generator=generator)
    normal = torch.randn(count, generator=generator) * config.logit_std + config.logit_mean
    return (normal.sigmoid() * 1000).long().clamp(0, 999)
