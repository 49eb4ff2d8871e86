"""Settings of sampling: context windows, noise, FreeInit and the second pass."""

from collections.abc import Iterator
from typing import Annotated, Literal

from annotated_types import Ge, Gt
from pydantic import Field

from ..errors import Problem
from .kinds import NO_FLAG, Count, Flag, Index, Seed, ShareOfSteps, Strength
from .record import Record

WindowSchedule = Literal["standard_static", "standard_uniform", "looped_uniform"]
Fuse = Literal["pyramid", "flat", "overlap_linear"]
NoiseType = Literal["independent", "shared", "mixed", "progressive", "freenoise"]
Filter = Literal["butterworth", "gaussian", "ideal"]
Method = Literal["nearest", "bilinear", "bicubic"]


class Window(Record):
    """Context windows: how a clip longer than the motion module's is denoised."""

    length: Annotated[int, Ge(2), NO_FLAG] = 16
    """Frames denoised together, for clips longer than the motion module's."""
    overlap: Index = Field(default_factory=lambda data: data["length"] // 4)
    """Frames that neighbouring windows share, below length; default: a quarter of the window."""
    stride: Count = 1
    """Number of scales: windows whose frames are 1, 2, 4, ... 2**(stride - 1) apart.
    standard_static knows only 1."""
    schedule: WindowSchedule = "standard_uniform"
    """standard_uniform: shifted from step to step, so that no seam stays in one place;
    standard_static: the same windows in every step; looped_uniform: shifted, and on around the
    clip's end, so that it loops without a seam, also if it is no longer than a window."""
    fuse: Fuse = "pyramid"
    """Weights where windows overlap."""

    def misfits(self) -> Iterator[Problem]:
        if self.overlap >= self.length:
            yield Problem(f"must be below length {self.length}, got {self.overlap}", "overlap")
        if self.stride > 1 and self.schedule == "standard_static":
            yield Problem("above 1 needs schedule standard_uniform or looped_uniform", "stride")


class Noise(Record):
    """Initial noise: what the frames' noise has in common."""

    type: NoiseType = "independent"
    """independent; shared: one noise for all frames; mixed and progressive: arXiv 2305.10474;
    freenoise: the window's noise again, shuffled, arXiv 2310.15169."""
    alpha: Strength = 1.0
    """Share of the common noise for mixed and progressive; 0 is independent."""
    frame_seeds: tuple[Seed, ...] = ()
    """A seed for each frame's own noise instead of the job's, as many as frames."""

    def misfits(self) -> Iterator[Problem]:
        if self.frame_seeds and self.type in ("shared", "freenoise"):
            yield Problem(f"do not go with type {self.type}", "frame_seeds")


class FreeInit(Record):
    """Sampling again from noise that keeps the last result's low frequencies (arXiv 2312.07537)."""

    iterations: Annotated[int, Ge(2), NO_FLAG] = 3
    """How often the clip is sampled."""
    filter: Filter = "butterworth"
    """The low-pass filter."""
    order: Count = 4
    """Order of the butterworth filter."""
    spatial_stop: ShareOfSteps = 0.25
    """Where the low pass ends in space; 1 is the highest frequency."""
    temporal_stop: ShareOfSteps = 0.25
    """Where the low pass ends in time; 1 is the highest frequency."""
    fast: Flag = False
    """Fewer steps in the first iterations."""


class Upscale(Record):
    """A second pass: the latents enlarged, then denoised in a part of the steps."""

    scale: Annotated[float, Gt(1), NO_FLAG] = 2.0
    """Factor on width and height; the result must suit the VAE."""
    strength: ShareOfSteps = 0.5
    """Share of the steps that the second pass runs."""
    method: Method = "bicubic"
    """How the latents are enlarged."""


def first_step(strength: float, steps: int) -> int:
    """The step, counted from 0, from which a share of the steps runs.

    The share counts as the nearest whole number of steps; at least one runs.
    """
    return steps - max(1, round(steps * strength))
