"""IP-Adapters: reference images as prompts.

Legend: f frames, n tokens, d features, h w latent size.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers.models.clip import CLIPVisionConfig

from ..adapters.fit import check_fit
from ..adapters.ip_adapter import (
    IPAdapterWeights,
    attach_ip_adapters,
    encoder_width,
    load_image_encoder,
    read_ip_adapter,
)
from ..diffusion.conditioning import Conditioning
from ..diffusion.image_embeddings import embed_images
from ..diffusion.interpolation import numbers_by_frame
from ..errors import Check, CheckpointError
from ..jobs import Job
from ..jobs.conditions import IPAdapter
from ..media.image import read_image
from ..weights.places import local_path
from .images import images_source, key_frame_sources, mask_of
from .kind import ImageSources, Kind, LoadedModel, PlannedModel, WeightSource

_KEY = "ip_adapters"


def _weights(job: Job) -> Iterator[WeightSource]:
    for adapter in job.ip_adapters:
        yield WeightSource("ip_adapter", adapter.path, "file")
        yield WeightSource("image_encoder", adapter.encoder, "image encoder")


def _images(job: Job) -> ImageSources:
    for i, adapter in enumerate(job.ip_adapters):
        key = f"{_KEY}[{i}].images"
        yield from key_frame_sources(adapter.images, job, "stretch", key)  # of any size
        if adapter.mask is not None:
            yield f"{_KEY}[{i}].mask", images_source(adapter.mask, job, mask=True)


def _checks(job: Job, model: PlannedModel, offline: bool) -> Iterator[Check]:
    for i, adapter in enumerate(job.ip_adapters):
        yield f"{_KEY}[{i}].path", partial(_check, adapter, model, offline)
        yield f"{_KEY}[{i}].encoder", partial(_encoder_config, adapter, offline)


def _check(adapter: IPAdapter, model: PlannedModel, offline: bool) -> None:
    """The adapter fits the UNet and reads what its image encoder gives."""
    check_fit(_KEY, adapter.path, model.base, offline=offline)
    with torch.device("meta"):
        weights = read_ip_adapter(local_path(adapter.path, offline=offline))
    try:
        config = _encoder_config(adapter, offline)
    except CheckpointError:
        return  # which its own check says
    width = config.projection_dim if weights.form == "plain" else config.hidden_size
    if width != encoder_width(weights):
        raise CheckpointError(
            f"{adapter.path}: reads {encoder_width(weights)} numbers for an image but "
            f"{adapter.encoder} gives {width}; use the image encoder that it was trained with"
        )


def _encoder_config(adapter: IPAdapter, offline: bool) -> CLIPVisionConfig:
    """The settings of an image encoder that is whole."""
    path = local_path(adapter.encoder, "image encoder", offline=offline)
    with torch.device("meta"):
        config: CLIPVisionConfig = load_image_encoder(path, None).config
    return config


def _adapter(adapter: IPAdapter, model: LoadedModel) -> IPAdapterWeights:
    path = local_path(adapter.path, offline=model.offline)
    return model.once("ip_adapter", adapter.path, lambda: read_ip_adapter(path))


def _load(job: Job, model: LoadedModel) -> Callable[[], None] | None:
    """Attach the job's adapters to the UNet."""
    if not job.ip_adapters:
        return None
    weights = [(_adapter(one, model), one.scale) for one in job.ip_adapters]
    return attach_ip_adapters(model.base.unet, weights)


def _apply(
    conditioning: Conditioning, job: Job, model: LoadedModel, size: tuple[int, int]
) -> Conditioning:
    if not job.ip_adapters:
        return conditioning
    pairs = [_embeddings(one, job, model) for one in job.ip_adapters]
    masks: tuple[Tensor, ...] = ()
    if any(one.weights is not None or one.mask is not None for one in job.ip_adapters):
        masks = tuple(_mask(one, job, model, size) for one in job.ip_adapters)
    return replace(
        conditioning,
        conditions=replace(
            conditioning.conditions,
            image_embeddings=tuple(embedding for embedding, _ in pairs),
            image_masks=masks,
        ),
        negative_conditions=replace(
            conditioning.negative_conditions,
            image_embeddings=tuple(without for _, without in pairs),
            image_masks=masks,
        ),
    )


def _embeddings(adapter: IPAdapter, job: Job, model: LoadedModel) -> tuple[Tensor, Tensor]:
    """Embeddings of the reference images and of none, f 1 d or f 1 n d each."""
    path = local_path(adapter.encoder, "image encoder", offline=model.offline)
    encoder = model.once(
        "image_encoder",
        adapter.encoder,
        lambda: load_image_encoder(path, None).to(model.device, model.dtype),
    )
    images = {frame: read_image(Path(path)) for frame, path in adapter.images.items()}
    states = _adapter(adapter, model).form != "plain"
    return embed_images(encoder, images, job.frames, states=states, loop=job.travel_loop)


def _mask(adapter: IPAdapter, job: Job, model: LoadedModel, size: tuple[int, int]) -> Tensor:
    """How strongly an adapter acts by frame and latent pixel, f h w or f 1 1."""
    mask = torch.ones(job.frames, 1, 1)
    if adapter.mask is not None:
        mask = mask_of(adapter.mask, job, model, size)[0, 0]
    if adapter.weights is not None:
        mask = mask * torch.tensor(numbers_by_frame(adapter.weights, job.frames)).view(-1, 1, 1)
    return mask.to(model.device)


IP_ADAPTERS = Kind(weights=_weights, images=_images, checks=_checks, load=_load, apply=_apply)
