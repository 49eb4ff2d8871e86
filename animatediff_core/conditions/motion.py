"""The motion module's strength, by block and by frame, and its positions."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from ..diffusion.conditioning import Conditioning
from ..diffusion.interpolation import numbers_by_frame
from ..errors import Check, PromptFileError
from ..jobs import Job
from ..motion import Positions
from .kind import Kind, LoadedModel, PlannedModel


def _checks(job: Job, model: PlannedModel, offline: bool) -> Iterator[Check]:
    yield "motion_strength.blocks", lambda: _check_blocks(job, model)


def _check_blocks(job: Job, model: PlannedModel) -> None:
    sides = range(len(model.motion_config.block_out_channels))
    middle = ["mid_block"] if model.motion_config.mid_block else []
    known = [*(f"down_blocks.{i}" for i in sides), *middle, *(f"up_blocks.{i}" for i in sides)]
    for name in job.motion_strength.blocks or {}:
        if name not in known:
            raise PromptFileError(f"names {name}, but the module's are {', '.join(known)}")


def _apply(
    conditioning: Conditioning, job: Job, model: LoadedModel, size: tuple[int, int]
) -> Conditioning:
    strength, positions = job.motion_strength, job.motion_positions
    frames = None
    if strength.frames is not None:
        by_frame = numbers_by_frame(strength.frames, job.frames)
        frames = torch.tensor(by_frame, device=model.device)
    return conditioning.in_both(
        lambda one: replace(
            one,
            motion_strength=strength.scale,
            motion_blocks=dict(strength.blocks or {}),
            motion_frames=frames,
            motion_positions=Positions(stretch=positions.stretch, offset=positions.offset),
        )
    )


MOTION = Kind(checks=_checks, apply=_apply)
