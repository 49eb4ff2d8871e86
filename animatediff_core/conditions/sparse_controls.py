"""SparseCtrl encoders, with images or scribbles at some frames.

Legend: f frames, c channels, h w latent size, H W pixels.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
from torch import Tensor

from ..adapters.control_files import ControlInfo
from ..adapters.fit import check_fit
from ..adapters.sparse_ctrl import load_sparse_control
from ..diffusion.conditioning import Conditioning
from ..diffusion.residuals import Control
from ..diffusion.windows import window_length
from ..errors import Check, CheckpointError
from ..jobs import Job
from ..jobs.conditions import SparseControl
from ..motion.sparse_ctrl import SparseControlNet, sparse_condition
from ..weights.places import local_path
from .images import image_of_size, key_frame_sources, latents_of, pixels
from .kind import ImageSources, Kind, LoadedModel, PlannedModel, WeightSource

_KEY = "sparse_controls"


def _weights(job: Job) -> Iterator[WeightSource]:
    for net in job.sparse_controls:
        yield WeightSource("sparse_control", net.path)


def _images(job: Job) -> ImageSources:
    for i, net in enumerate(job.sparse_controls):
        yield from key_frame_sources(net.images, job, net.fit, f"{_KEY}[{i}].images")


def _check(source: str, job: Job, model: PlannedModel, offline: bool) -> None:
    info = check_fit(_KEY, source, model.base, offline=offline)
    assert isinstance(info, ControlInfo)
    longest = info.max_frames
    together = window_length(job.window, job.frames)
    if together > longest:
        raise CheckpointError(
            f"{source}: knows {longest} frames at most, but {together} are denoised together; "
            f"set window.length (-C) to {longest} or less"
        )


def _checks(job: Job, model: PlannedModel, offline: bool) -> Iterator[Check]:
    for i, net in enumerate(job.sparse_controls):
        yield f"{_KEY}[{i}].path", partial(_check, net.path, job, model, offline)


def _encoder(net: SparseControl, model: LoadedModel) -> SparseControlNet:
    def load() -> SparseControlNet:
        path = local_path(net.path, "control", offline=model.offline)
        control = load_sparse_control(path, model.base.unet, dtype=None)
        return control.to(model.device, model.dtype)

    return model.once("sparse_control", net.path, load)


def _load(job: Job, model: LoadedModel) -> None:
    for net in job.sparse_controls:
        _encoder(net, model)


def _apply(
    conditioning: Conditioning, job: Job, model: LoadedModel, size: tuple[int, int]
) -> Conditioning:
    controls = []
    for net in job.sparse_controls:
        encoder = _encoder(net, model)
        inputs: dict[int, Tensor] = {}
        for frame, path in net.images.items():
            image = image_of_size(path, job, net.fit, size)
            image = _normalized(image) if net.normalize else image
            read = (
                latents_of(model, image[None])
                if encoder.reads == "latents"
                else pixels(image[None])
            )
            inputs[frame] = read[0, :, 0]  # c h w, or 3 H W
        control = Control(
            model=encoder,
            condition=sparse_condition(inputs, job.frames),
            strength=net.strength,
            start=net.start,
            end=net.end,
        )
        controls.append(control)
    return replace(conditioning, controls=(*conditioning.controls, *controls))


def _normalized(image: np.ndarray) -> np.ndarray:
    """Greys stretched from black to white, as the official normalize_condition_images."""
    grey = image.astype(np.float32).mean(axis=2)
    span = max(float(grey.max() - grey.min()), 1e-6)
    stretched = (grey - grey.min()) / span * 255
    return np.repeat(stretched.round().astype(np.uint8)[..., None], 3, axis=2)


SPARSE_CONTROLS = Kind(weights=_weights, images=_images, checks=_checks, load=_load, apply=_apply)
