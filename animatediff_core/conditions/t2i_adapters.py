"""T2I-Adapters."""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from ..adapters.fit import check_fit
from ..adapters.t2i_adapter import T2IInfo, t2i_form
from ..diffusion.conditioning import Conditioning
from ..errors import Check, CheckpointError
from ..jobs import Job
from ..jobs.conditions import ControlNet
from ..weights.places import local_path
from .controlnets import images_of, with_controls
from .kind import Kind, LoadedModel, PlannedModel, WeightSource

if TYPE_CHECKING:  # slow to import, and few jobs use one
    from diffusers.models.adapter import T2IAdapter


def _check(source: str, job: Job, model: PlannedModel, offline: bool) -> None:
    info = check_fit("t2i_adapters", source, model.base, offline=offline)
    assert isinstance(info, T2IInfo)
    form = t2i_form(info, model.motion_config.block_out_channels, model.vae_scale_factor, source)
    for scale in (1.0, job.upscale.scale if job.upscale else 1.0):
        width, height = round(job.width * scale), round(job.height * scale)
        if width % form.downscale_factor or height % form.downscale_factor:
            raise CheckpointError(
                f"{source}: reads images whose width and height are multiples of "
                f"{form.downscale_factor}, but the clip is {width} x {height}"
            )


def _checks(job: Job, model: PlannedModel, offline: bool) -> Iterator[Check]:
    for i, net in enumerate(job.t2i_adapters):
        yield f"t2i_adapters[{i}].path", partial(_check, net.path, job, model, offline)


def _weights(job: Job) -> Iterator[WeightSource]:
    for net in job.t2i_adapters:
        yield WeightSource("t2i_adapter", net.path)


def _adapter(net: ControlNet, model: LoadedModel) -> "T2IAdapter":
    from ..adapters.t2i_adapter import load_t2i_adapter

    def load() -> "T2IAdapter":
        path = local_path(net.path, "control", offline=model.offline)
        adapter = load_t2i_adapter(path, model.base.unet, model.base.vae_scale_factor, None)
        return adapter.to(model.device, model.dtype)

    return model.once("t2i_adapter", net.path, load)


def _apply(
    conditioning: Conditioning, job: Job, model: LoadedModel, size: tuple[int, int]
) -> Conditioning:
    return with_controls(conditioning, job.t2i_adapters, _adapter, job, model, size)


T2I_ADAPTERS = Kind(
    weights=_weights,
    images=lambda job: images_of(job.t2i_adapters, "t2i_adapters", job),
    checks=_checks,
    apply=_apply,
)
