"""Settings of sampling: windows, noise, FreeInit and the second pass."""

from dataclasses import dataclass
from typing import Literal

from .choices import one_of

WindowSchedule = Literal["standard_static", "standard_uniform", "looped_uniform"]
Fuse = Literal["pyramid", "flat", "overlap_linear"]
NoiseType = Literal["independent", "shared", "mixed", "progressive", "freenoise"]
Filter = Literal["butterworth", "gaussian", "ideal"]
Method = Literal["nearest", "bilinear", "bicubic"]


@dataclass(frozen=True, kw_only=True)
class Window:
    """How a clip longer than the motion module's is denoised in overlapping parts."""

    length: int = 16
    """Frames denoised together, 2 up to what the motion module knows."""
    overlap: int = 4
    """Frames that neighbours share, 0 up to length - 1."""
    stride: int = 1
    """Number of scales: windows whose frames lie 1, 2, 4, ... 2**(stride - 1) apart; 1 or more.
    standard_static knows only 1."""
    schedule: WindowSchedule = "standard_uniform"
    """standard_uniform: shifted from step to step, so that no seam stays in one place;
    standard_static: the same windows in every step; looped_uniform: shifted, and on around the
    clip's end, so that it loops without a seam, also where it is no longer than a window."""
    fuse: Fuse = "pyramid"
    """How the windows' predictions are weighted where they overlap."""

    def __post_init__(self) -> None:
        if self.length < 2:
            raise ValueError(f"window.length must be 2 or more, got {self.length}")
        if not 0 <= self.overlap < self.length:
            raise ValueError(
                f"window.overlap must be 0 or more and below length {self.length}, "
                f"got {self.overlap}"
            )
        if self.stride < 1:
            raise ValueError(f"window.stride must be 1 or more, got {self.stride}")
        if self.stride > 1 and self.schedule == "standard_static":
            raise ValueError(
                "window.stride above 1 needs schedule standard_uniform or looped_uniform"
            )
        one_of("window.schedule", self.schedule, WindowSchedule)
        one_of("window.fuse", self.fuse, Fuse)


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What the frames' first noise has in common."""

    type: NoiseType = "independent"
    """independent; shared: one noise for all frames; mixed and progressive: arXiv 2305.10474;
    freenoise: the window's noise again, shuffled, arXiv 2310.15169."""
    alpha: float = 1.0
    """Share of the common noise for mixed and progressive, 0 or more; 0 is independent."""
    frame_seeds: tuple[int, ...] = ()
    """A seed for each frame's own noise instead of the job's, as many as frames."""

    def __post_init__(self) -> None:
        one_of("noise.type", self.type, NoiseType)
        if self.alpha < 0:
            raise ValueError(f"noise.alpha must be 0 or more, got {self.alpha:g}")
        if any(not 0 <= seed < 2**64 for seed in self.frame_seeds):
            raise ValueError("noise.frame_seeds must be 0 to 2**64-1 each")
        if self.frame_seeds and self.type in ("shared", "freenoise"):
            raise ValueError(f"noise.frame_seeds do not go with type {self.type}")


@dataclass(frozen=True, kw_only=True)
class FreeInit:
    """Sampling again from noise that keeps the last result's slow parts (arXiv 2312.07537)."""

    iterations: int = 3
    """How often the clip is sampled, 2 or more."""
    filter: Filter = "butterworth"
    order: int = 4
    """Of the butterworth filter, 1 or more."""
    spatial_stop: float = 0.25
    """Where the low pass ends in space, above 0 up to 1 (the highest frequency)."""
    temporal_stop: float = 0.25
    """The same in time."""
    fast: bool = False
    """Fewer steps in the first iterations."""

    def __post_init__(self) -> None:
        one_of("free_init.filter", self.filter, Filter)
        for name in ("spatial_stop", "temporal_stop"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"free_init.{name} must be above 0 and at most 1")
        if self.iterations < 2:
            raise ValueError(f"free_init.iterations must be 2 or more, got {self.iterations}")
        if self.order < 1:
            raise ValueError(f"free_init.order must be 1 or more, got {self.order}")


@dataclass(frozen=True, kw_only=True)
class Upscale:
    """A second pass: the latents made larger, then denoised from part of the way."""

    scale: float = 2.0
    """Factor on width and height, above 1; the result must suit the VAE."""
    strength: float = 0.5
    """Share of the steps that the second pass runs, above 0 up to 1."""
    method: Method = "bicubic"

    def __post_init__(self) -> None:
        if self.scale <= 1:
            raise ValueError(f"upscale.scale must be above 1, got {self.scale:g}")
        if not 0 < self.strength <= 1:
            raise ValueError(
                f"upscale.strength must be above 0 and at most 1, got {self.strength:g}"
            )
        one_of("upscale.method", self.method, Method)
