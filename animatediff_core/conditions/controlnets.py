"""ControlNets, and what T2I-Adapters share with them.

Legend: f frames, H W pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Union

import numpy as np
import torch

from ..adapters.fit import check_fit
from ..diffusion.conditioning import Conditioning
from ..diffusion.interpolation import numbers_by_frame
from ..diffusion.residuals import Control
from ..diffusion.windows import is_divided
from ..errors import Check
from ..jobs import Job
from ..jobs.conditions import ControlNet
from ..media.edges import canny
from ..media.image_source import fit_image
from ..weights.places import local_path
from .images import images_of_size, images_source, pixels
from .kind import ImageSources, Kind, LoadedModel, PlannedModel, WeightSource

if TYPE_CHECKING:  # slow to import, and few jobs use one
    from diffusers.models import ControlNetModel
    from diffusers.models.adapter import T2IAdapter


def images_of(nets: Sequence[ControlNet], key: str, job: Job) -> ImageSources:
    """The inputs of ControlNets or T2I-Adapters."""
    for i, net in enumerate(nets):
        yield f"{key}[{i}].images", images_source(net.images, job)


def with_controls(
    conditioning: Conditioning,
    nets: Sequence[ControlNet],
    load: Callable[[ControlNet, LoadedModel], Union["ControlNetModel", "T2IAdapter"]],
    job: Job,
    model: LoadedModel,
    size: tuple[int, int],
) -> Conditioning:
    """Adds ControlNets or T2I-Adapters with their inputs, which stay on the CPU for a long clip."""
    device = torch.device("cpu") if is_divided(job.window, job.frames) else model.device
    controls = []
    for net in nets:
        control = Control(
            model=load(net, model),
            condition=pixels(_input(net, job, size)).to(device),
            strength=net.strength,
            start=net.start,
            end=net.end,
            weights=numbers_by_frame(net.weights, job.frames),
        )
        controls.append(control)
    return replace(conditioning, controls=(*conditioning.controls, *controls))


def _input(net: ControlNet, job: Job, size: tuple[int, int]) -> np.ndarray:
    """f H W 3 uint8."""
    if net.canny is None:
        return images_of_size(net.images, job, size)
    images = images_of_size(net.images, job, (job.width, job.height))
    edges = [canny(one, net.canny.low, net.canny.high) for one in images]
    return np.stack([fit_image(one, size, "stretch") for one in edges])


def _controlnet(net: ControlNet, model: LoadedModel) -> "ControlNetModel":
    from ..adapters.controlnet import load_controlnet

    def load() -> "ControlNetModel":
        path = local_path(net.path, "control", offline=model.offline)
        return load_controlnet(path, model.base.unet, None).to(model.device, model.dtype)

    return model.once("controlnet", net.path, load)


def _weights(job: Job) -> Iterator[WeightSource]:
    for net in job.controlnets:
        yield WeightSource("controlnet", net.path)


def _checks(job: Job, model: PlannedModel, offline: bool) -> Iterator[Check]:
    for i, net in enumerate(job.controlnets):
        key = f"controlnets[{i}].path"
        yield key, partial(check_fit, "controlnets", net.path, model.base, offline=offline)


def _load(job: Job, model: LoadedModel) -> None:
    for net in job.controlnets:
        _controlnet(net, model)


def _apply(
    conditioning: Conditioning, job: Job, model: LoadedModel, size: tuple[int, int]
) -> Conditioning:
    return with_controls(conditioning, job.controlnets, _controlnet, job, model, size)


CONTROLNETS = Kind(
    weights=_weights,
    images=lambda job: images_of(job.controlnets, "controlnets", job),
    checks=_checks,
    load=_load,
    apply=_apply,
)
