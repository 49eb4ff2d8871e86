"""State of an unfinished stage on disk: a cut costs at most one interval."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..media.atomic import atomic_write


def save_parts(path: Path, parts: Mapping[str, Any], step: int) -> None:
    """Write the states of models, optimizer and schedule after so many steps."""
    state = {name: part.state_dict() for name, part in parts.items()}
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        torch.save({**state, "step": step}, file)


def load_state(path: Path) -> dict[str, Any] | None:
    """The state saved at `path`, or None where there is none."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def resume_parts(path: Path, parts: Mapping[str, Any]) -> int:
    """Bring the parts to where `save_parts` left them; returns the steps done, 0 without a file."""
    state = load_state(path)
    if state is None:
        return 0
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])


def train_naming(
    both: nn.Module,
    state_file: Path,
    steps: int,
    every: int,
    loss_of: Callable[[int], tuple[Tensor, float]],
) -> Iterator[tuple[int, float]]:
    """Train an encoder and its heads from where the saved state stands.

    `loss_of` gives a step's loss and the share that was named right. After each `every` steps the
    state is saved, and step and share are yielded.
    """
    optimizer = torch.optim.AdamW(both.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps + 1)
    parts = {"both": both, "optimizer": optimizer, "schedule": schedule}
    for step in range(resume_parts(state_file, parts), steps):
        loss, right = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % every == 0 or step + 1 == steps:
            save_parts(state_file, parts, step + 1)
            yield step + 1, right


def naming_loss(scores: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of naming an attribute, and the share named right. scores: n values."""
    return F.cross_entropy(scores, truth), (scores.argmax(1) == truth).float().mean()


def load_named(encoder: nn.Module, state_file: Path) -> None:
    """Put what `train_naming` saved of the encoder into a new one, and freeze it."""
    state = load_state(state_file)
    assert state is not None, "the stage before must have run"
    prefix = "encoder."
    weights = {k.removeprefix(prefix): v for k, v in state["both"].items() if k.startswith(prefix)}
    encoder.load_state_dict(weights)
    encoder.requires_grad_(False).eval()
