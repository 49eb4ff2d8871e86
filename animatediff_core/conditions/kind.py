"""The protocol of a kind of condition, and the model that its jobs share."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from ..checkpoints.base_model import BaseModel
from ..diffusion.conditioning import Conditioning
from ..errors import Check
from ..jobs import Job
from ..media.image_source import ImageSource
from ..motion import AnimatedUNet, MotionConfig
from ..weights.places import Role, local_path

Loaded = TypeVar("Loaded")


class PlannedModel(Protocol):
    """A model that planning has found and that is not loaded yet."""

    @property
    def base(self) -> BaseModel:
        """The base model without values."""

    @property
    def vae_scale_factor(self) -> int:
        """Pixels for one latent."""

    @property
    def motion_path(self) -> Path:
        """The motion module's file."""

    @property
    def motion_config(self) -> MotionConfig:
        """The motion module's structure."""


@dataclass
class LoadedModel:
    """A base model with its motion module, and the condition models of its jobs."""

    base: BaseModel
    animated: AnimatedUNet
    offline: bool = False
    shared: dict[tuple[str, str], object] = field(default_factory=dict, repr=False)
    """By role and source: what is loaded when a job first needs it."""

    @property
    def device(self) -> torch.device:
        """Where the UNet runs."""
        device: torch.device = self.animated.unet.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The UNet's dtype."""
        dtype: torch.dtype = self.animated.unet.dtype
        return dtype

    def run_plainly(self) -> Callable[[], None]:
        """Run the plain forwards, which call every hook, until the result is called."""
        return lambda: None

    def once(self, role: str, source: str, load: Callable[[], Loaded]) -> Loaded:
        """Load once by role and source, and return the same object again later."""
        if (role, source) not in self.shared:
            self.shared[role, source] = load()
        return self.shared[role, source]  # type: ignore[return-value]


@dataclass(frozen=True)
class WeightSource:
    """A model that a condition reads."""

    role: str
    """Its name in the sidecar: controlnet, ip_adapter, image_encoder, …"""
    source: str
    """Its name in the job."""
    place: Role = "control"
    """Which files of a folder or hub repository it reads."""

    def local(self, *, offline: bool) -> Path:
        """Its local file or folder."""
        return local_path(self.source, self.place, offline=offline)


ImageSources = Iterator[tuple[str, ImageSource]]
"""Each with the key of its setting."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of condition; by default it reads, checks and changes nothing."""

    weights: Callable[[Job], Iterator[WeightSource]] = lambda job: iter(())
    """The models that a job's conditions of this kind read."""
    images: Callable[[Job], ImageSources] = lambda job: iter(())
    """The images and videos that they read."""
    checks: Callable[[Job, PlannedModel, bool], Iterator[Check]] = lambda job, model, offline: iter(
        ()
    )
    """Checks before anything is loaded; the last argument is `offline`. The existence and size of
    images is checked for all kinds."""
    strength: Callable[[Job], float | None] = lambda job: None
    """The share of the steps that run; None is not limited by this kind."""
    load: Callable[[Job, LoadedModel], Callable[[], None] | None] = lambda job, model: None
    """Loads the models of a job and attaches those that change the UNet; the result detaches."""
    apply: Callable[[Conditioning, Job, LoadedModel, tuple[int, int]], Conditioning] = (
        lambda conditioning, job, model, size: conditioning
    )
    """Adds a job's conditions to a sampling run of this width and height in pixels."""
