"""What leads a clip besides its prompt: models loaded once for all jobs, pictures made tensors.

Legend: b batch, f frames, c channels, h w latent size, H W pixels, d features.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..adapters.sparse_ctrl import load_sparse_control
from ..checkpoints.base_model import BaseModel
from ..diffusion.known_region import Kept, between, encode, known_frames, latent_mask
from ..diffusion.residuals import Control
from ..diffusion.windows import divides
from ..jobs import Job, first_step
from ..jobs.choices import Fit
from ..jobs.conditions import ControlNet, Images, SparseControl, T2IAdapter
from ..media.edges import canny
from ..media.image_source import ImageSource, fit_image, read_images
from ..motion.sparse_ctrl import SparseControlNet, sparse_condition
from ..planning.conditions import counted, keyed, pictures_of
from ..weights.places import local_path

if TYPE_CHECKING:  # slow to import, and few jobs use one
    from diffusers.models import ControlNetModel
    from diffusers.models.adapter import T2IAdapter as LoadedT2IAdapter

Loaded = TypeVar("Loaded")


@dataclass(frozen=True, kw_only=True)
class ConditionModels:
    """The control models of all jobs on one base model, each loaded when a job first needs it."""

    base: BaseModel
    device: torch.device
    dtype: torch.dtype
    offline: bool = False
    loaded: dict[tuple[str, str], object] = field(default_factory=dict)

    def once(self, role: str, source: str, load: Callable[[], Loaded]) -> Loaded:
        """The model of a role and name."""
        if (role, source) not in self.loaded:
            self.loaded[role, source] = load()
        return self.loaded[role, source]  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True)
class Lead:
    """What one pass of a job is led by."""

    controls: tuple[Control, ...] = ()
    kept: Kept | None = None
    source: Tensor | None = None
    """Clean latents 1 c f h w that the pass begins from; None is noise alone."""


def lead(job: Job, models: ConditionModels, size: tuple[int, int]) -> Lead:
    """All that leads a pass of this width and height in pixels."""
    device = torch.device("cpu") if divides(job.window, job.frames) else models.device
    controls = [_control(net, controlnet_of(net, models), job, size, device)
                for net in job.controlnets]  # fmt: skip
    controls += [_control(net, t2i_adapter_of(net, models), job, size, device)
                 for net in job.t2i_adapters]  # fmt: skip
    controls += [_sparse(net, job, models, size) for net in job.sparse_controls]
    given: dict[int, Tensor] = {}
    if job.keyframes is not None:
        named = keyed(job.keyframes.images, job.frames, "keyframes")
        for frame, path in named.items():
            picture = picture_of(path, job, job.keyframes.fit, size)
            given[frame] = latents_of(models, picture[None])
    video = None
    if job.start is not None:
        video = latents_of(models, _pictures(job.start.images, job, size))
    return Lead(
        controls=tuple(controls),
        kept=_kept(job, models, given, video, size),
        source=_source(job, given, video),
    )


def first_start(job: Job) -> int:
    """The step, counted from 0, that a job's first pass begins with."""
    begun = job.start or job.keyframes
    return 0 if begun is None else first_step(begun.strength, job.steps)


def mask_of(pictures: Images, job: Job, size: tuple[int, int], factor: int) -> Tensor:
    """1 1 f h w, 1 where a mask is white."""
    return latent_mask(_pictures(pictures, job, size), factor)


def controlnet_of(net: ControlNet, models: ConditionModels) -> "ControlNetModel":
    from ..adapters.controlnet import load_controlnet

    def load() -> "ControlNetModel":
        path = local_path(net.path, "control", offline=models.offline)
        return load_controlnet(path, models.base.unet).to(models.device, models.dtype)

    return models.once("controlnet", net.path, load)


def sparse_model_of(net: SparseControl, models: ConditionModels) -> SparseControlNet:
    def load() -> SparseControlNet:
        path = local_path(net.path, "control", offline=models.offline)
        return load_sparse_control(path, models.base.unet).to(models.device, models.dtype)

    return models.once("sparse", net.path, load)


def t2i_adapter_of(net: T2IAdapter, models: ConditionModels) -> "LoadedT2IAdapter":
    """The model, loaded when a job first needs it."""
    from ..adapters.t2i_adapter import load_t2i_adapter

    def load() -> "LoadedT2IAdapter":
        path = local_path(net.path, "control", offline=models.offline)
        adapter = load_t2i_adapter(path, models.base.unet, models.base.vae_scale_factor)
        return adapter.to(models.device, models.dtype)

    return models.once("t2i_adapter", net.path, load)


def _control(
    net: ControlNet,
    model: "ControlNetModel | LoadedT2IAdapter",
    job: Job,
    size: tuple[int, int],
    device: torch.device,
) -> Control:
    """Its pictures lie on `device`; those of a long clip come from the CPU window by window."""
    pictures = read_images(pictures_of(net.images, job))
    if net.canny is not None:
        edges = [canny(one, net.canny.low, net.canny.high) for one in pictures]
        pictures = np.stack(edges)
    pictures = np.stack([fit_image(one, size, "stretch") for one in pictures])
    condition = torch.from_numpy(pictures.copy()).permute(3, 0, 1, 2).unsqueeze(0).float() / 255
    return Control(
        model=model, condition=condition.to(device),
        strength=net.strength, start=net.start, end=net.end,
        weights=by_frame(net.weights, job.frames, "weights"),
    )  # fmt: skip


def _sparse(
    net: SparseControl, job: Job, models: ConditionModels, size: tuple[int, int]
) -> Control:
    model = sparse_model_of(net, models)
    read: dict[int, Tensor] = {}
    for frame, file in keyed(net.images, job.frames, "sparse_controls").items():
        picture = picture_of(file, job, net.fit, size)
        if net.normalize:
            picture = _normalized(picture)
        if model.reads == "latents":
            read[frame] = latents_of(models, picture[None])[0, :, 0]
        else:
            read[frame] = torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 255
    return Control(
        model=model, condition=sparse_condition(read, job.frames), strength=net.strength,
        start=net.start, end=net.end,
    )  # fmt: skip


def _kept(
    job: Job,
    models: ConditionModels,
    given: dict[int, Tensor],
    video: Tensor | None,
    size: tuple[int, int],
) -> Kept | None:
    """The video outside its mask, and over it the keyframes."""
    kept = None
    if video is not None and job.start is not None and job.start.mask is not None:
        mask = mask_of(job.start.mask, job, size, models.base.vae_scale_factor)
        kept = Kept(latents=video, mask=mask.to(video))
    if not given:
        return kept
    frames = known_frames(given, job.frames)
    if kept is None:
        return frames
    latents = torch.where(frames.mask == 0, frames.latents, kept.latents)
    return Kept(latents=latents, mask=frames.mask * kept.mask)


def _source(job: Job, given: dict[int, Tensor], video: Tensor | None) -> Tensor | None:
    if video is not None:
        return video
    if job.keyframes is not None and job.keyframes.strength < 1:
        return between(given, job.frames)
    return None


def latents_of(models: ConditionModels, pictures: np.ndarray) -> Tensor:
    return encode(models.base.vae, pictures).to(models.device)


def _pictures(pictures: Images, job: Job, size: tuple[int, int]) -> np.ndarray:
    read = read_images(pictures_of(pictures, job))
    return np.stack([fit_image(one, size, "stretch") for one in read])


def picture_of(path: Path, job: Job, fit: Fit, size: tuple[int, int]) -> np.ndarray:
    source = ImageSource(path, (0,), (job.width, job.height), fit)
    return fit_image(read_images(source)[0], size, "stretch")


def by_frame(named: Mapping[int, float] | None, frames: int, key: str) -> tuple[float, ...]:
    """A factor for each frame, linear between those named; none is 1 everywhere."""
    if named is None:
        return ()
    points = counted(named, frames, key)
    line = np.interp(np.arange(frames), list(points), list(points.values()))
    return tuple(float(value) for value in line)


def _normalized(picture: np.ndarray) -> np.ndarray:
    """Greys stretched from black to white, as the official normalize_condition_images."""
    grey = picture.astype(np.float32).mean(axis=2)
    span = max(float(grey.max() - grey.min()), 1e-6)
    stretched = (grey - grey.min()) / span * 255
    return np.repeat(stretched.round().astype(np.uint8)[..., None], 3, axis=2)
