"""LoRAs with weights by frame, which are attached instead of merged."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch

from ..adapters.fit import check_fit
from ..adapters.lora.attach import attach_lora, check_by_frame
from ..checkpoints.base_model import BaseModel
from ..diffusion.conditioning import Conditioning
from ..diffusion.interpolation import numbers_by_frame
from ..errors import Check, CheckpointError
from ..jobs import Adapter, Job
from ..weights.places import local_path
from .kind import Kind, LoadedModel, PlannedModel, WeightSource


def _by_frame(job: Job) -> list[Adapter]:
    """The LoRAs with weights by frame; the others are merged when the model is loaded."""
    return [lora for lora in job.loras if lora.weights is not None]


def _weights(job: Job) -> Iterator[WeightSource]:
    for lora in _by_frame(job):
        yield WeightSource("lora", lora.path, "file")


def _checks(job: Job, model: PlannedModel, offline: bool) -> Iterator[Check]:
    for i, lora in enumerate(job.loras):
        if lora.weights is not None:
            yield f"loras[{i}].path", partial(_check, lora.path, model.base, offline)


def _check(source: str, base: BaseModel, offline: bool) -> None:
    report = check_fit("loras", source, base, offline=offline)
    if words := report.details.get("embeddings"):
        raise CheckpointError(
            f"{source}: holds an embedding ({words}), which has no weights by frame; leave weights "
            "out"
        )
    with torch.device("meta"):
        check_by_frame(base, report.path)


def _load(job: Job, model: LoadedModel) -> Callable[[], None] | None:
    """Attach the LoRAs; meanwhile the plain forwards run, as the fast ones know no hooks."""
    loras = _by_frame(job)
    if not loras:
        return None
    undo = [model.run_plainly()]

    def detach() -> None:
        while undo:
            undo.pop()()

    try:
        for number, lora in enumerate(loras):
            path = local_path(lora.path, offline=model.offline)
            undo.append(attach_lora(model.base, model.animated.call, path, number))
    except BaseException:
        detach()
        raise
    return detach


def _apply(
    conditioning: Conditioning, job: Job, model: LoadedModel, size: tuple[int, int]
) -> Conditioning:
    weights = []
    for lora in _by_frame(job):
        by_frame = torch.tensor(numbers_by_frame(lora.weights, job.frames), device=model.device)
        weights.append(lora.scale * by_frame)
    return conditioning.in_both(lambda one: replace(one, lora_weights=tuple(weights)))


LORAS = Kind(weights=_weights, checks=_checks, load=_load, apply=_apply)
