"""One training loop for all stages: a step that fits into a CUDA graph, an average, a clock."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .recipes import Recipe

CHECK_EVERY = 20
"""Replayed steps between looks at the clock; each look waits for the device."""


@dataclass(frozen=True)
class Report:
    """Where a stage stands."""

    step: int
    seconds: float
    loss: float
    samples_per_second: float
    how: str
    """How steps run."""


def record(work: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """A CUDA graph of some work on the device, after three runs to warm up."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


class Trainer:
    """Trains some modules with a function that gives a loss, until a time is over.

    The modules hold the weights in the dtype that they compute with; the trained weights are fp32
    copies. On CUDA the whole step is captured once and replayed, because small models are bound by
    the launches of their kernels; if that fails, the reason is reported and steps run one by one.
    """

    def __init__(
        self,
        loss_of: Callable[[], Tensor],
        modules: Sequence[nn.Module],
        recipe: Recipe,
        device: torch.device,
    ) -> None:
        self.loss_of, self.recipe, self.device = loss_of, recipe, device
        self.modules = modules
        self.used: list[Tensor] = [p for module in modules for p in module.parameters()]
        self.trained = [p.detach().float().clone() for p in self.used]
        self.average = [p.clone() for p in self.trained]
        for weight in self.trained:
            weight.grad = torch.zeros_like(weight)
        on_gpu = device.type == "cuda"
        self.rate = torch.zeros((), device=device)
        self.optimizer = torch.optim.AdamW(
            self.trained,
            lr=self.rate if on_gpu else 0.0,
            betas=(0.9, 0.99),
            weight_decay=0.01,
            fused=on_gpu,
            capturable=on_gpu,
        )
        self.loss = torch.zeros((), device=device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.steps = 0

    def step(self) -> None:
        """Forward, backward, update; everything stays on the device."""
        for weight in self.used:
            weight.grad = None
        loss = self.loss_of()
        loss.backward()
        torch._foreach_copy_(_gradients(self.trained), _gradients(self.used))
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(self.used, self.trained)
        self.loss.copy_(loss.detach())

    def capture(self) -> str:
        """Record the step as a CUDA graph; returns how steps will run."""
        if self.device.type != "cuda":
            return "steps run one by one"
        if self.graph is not None:
            return "a CUDA graph of the whole step"
        try:
            self.graph = record(self.step)
        except RuntimeError as error:
            torch.cuda.synchronize()
            return f"no CUDA graph, steps run one by one: {error}"
        return "a CUDA graph of the whole step"

    def milliseconds(self, runs: int = 8) -> float:
        """The time of a recorded step, at a learning rate of 0; infinite if there is none."""
        if self.graph is None:
            return math.inf
        began = time.monotonic()
        for _ in range(runs):
            self.graph.replay()
        torch.cuda.synchronize()
        return (time.monotonic() - began) / runs * 1000

    def run(self, seconds: float, *, max_steps: int | None = None) -> Iterator[Report]:
        """Train for so long; yields a report every `gate_every` seconds and at the end.

        What the caller does with a report counts as time of the stage.
        """
        began = time.monotonic()
        how = self.capture()
        yield Report(0, time.monotonic() - began, float(self.loss), 0.0, how)
        losses: list[float] = []
        since, steps_since = time.monotonic(), 0
        while True:
            now = time.monotonic()
            done = now - began >= seconds or self.steps == max_steps
            if done or now - since >= self.recipe.gate_every:
                speed = steps_since * self.recipe.batch / max(now - since, 1e-9)
                mean = sum(losses) / max(len(losses), 1)
                yield Report(self.steps, now - began, mean, speed, how)
                if done:
                    return
                since, steps_since, losses = time.monotonic(), 0, []
            share = min((now - began) / seconds, 1.0)
            for _ in range(CHECK_EVERY if self.graph else 1):
                self._one_step(share)
                steps_since += 1
            losses.append(float(self.loss))

    def _one_step(self, share: float) -> None:
        warm = min((self.steps + 1) / self.recipe.warmup, 1.0)
        rate = warm * (0.02 + 0.49 * (1 + math.cos(math.pi * share))) * self.recipe.learning_rate
        if self.device.type == "cuda":
            self.rate.fill_(rate)
        else:
            self.optimizer.param_groups[0]["lr"] = rate
        if self.graph is None:
            self.step()
        else:
            self.graph.replay()
        self.steps += 1
        if self.steps % 4 == 0:
            weight = max(1 - self.recipe.average**4, 4 / (self.steps + 4))
            torch._foreach_lerp_(self.average, self.trained, weight)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Context manager: the modules compute with the averaged weights."""
        with torch.no_grad():
            torch._foreach_copy_(self.used, self.average)
            try:
                yield
            finally:
                torch._foreach_copy_(self.used, self.trained)

    def weights(self) -> list[dict[str, Tensor]]:
        """The averaged weights of each module by name."""
        rest = iter(self.average)
        return [{name: next(rest) for name, _ in m.named_parameters()} for m in self.modules]


def _gradients(weights: Sequence[Tensor]) -> list[Tensor]:
    return [weight.grad for weight in weights if weight.grad is not None]
