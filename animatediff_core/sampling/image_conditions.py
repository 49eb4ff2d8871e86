"""What the UNet itself is told besides the prompt: pictures that it reads, how the module moves.

Legend: b batch, f frames, c channels, h w latent size, n tokens, d features.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.models.clip import CLIPVisionModelWithProjection

from ..adapters.ip_adapter import (
    IPAdapterWeights,
    attach_ip_adapters,
    load_image_encoder,
    read_ip_adapter,
)
from ..diffusion.image_embeddings import embed_images
from ..diffusion.pia_mask import pia_mask
from ..jobs import Job
from ..jobs.conditions import MotionPositions, MotionStrength
from ..media.image import read_image
from ..motion import Conditions, Positions
from ..planning.conditions import keyed
from ..weights.places import local_path
from .conditions import (
    ConditionModels,
    by_frame,
    controlnet_of,
    latents_of,
    picture_of,
    sparse_model_of,
)


@contextmanager
def reading_pictures(job: Job, models: ConditionModels) -> Iterator[None]:
    """While this lasts, the UNet has the job's IP-Adapters."""
    if not job.ip_adapters:
        yield
        return
    for net in job.controlnets:  # they are built as the UNet is without adapters
        controlnet_of(net, models)
    for sparse in job.sparse_controls:
        sparse_model_of(sparse, models)
    weights = [(_adapter(models, one.path), one.scale) for one in job.ip_adapters]
    detach = attach_ip_adapters(models.base.unet, weights)
    try:
        yield
    finally:
        detach()


def with_pictures(
    job: Job,
    models: ConditionModels,
    size: tuple[int, int],
    pair: tuple[Conditions | None, Conditions | None],
) -> tuple[Conditions | None, Conditions | None]:
    """The conditions of prompt and negative prompt with what the UNet itself reads of pictures, and
    with the strength of the motion."""
    moving = _moving(job, models)
    if not job.ip_adapters and job.animate is None and not moving:
        return pair
    led, away = (replace(one or Conditions(), **moving) for one in pair)
    seen, unseen = _embeddings(job, models)
    weights = _weights(job, models)
    led = replace(led, image_embeddings=seen, image_masks=weights)
    away = replace(away, image_embeddings=unseen, image_masks=weights)
    if job.animate is not None:
        picture = picture_of(Path(job.animate.image), job, job.animate.fit, size)
        still = latents_of(models, picture[None]).expand(-1, -1, job.frames, -1, -1)
        likeness = pia_mask(job.animate.motion, job.frames).view(1, 1, -1, 1, 1)
        mask = likeness.to(still).expand(1, 1, -1, *still.shape[3:])
        image = torch.cat([mask, still], dim=1).to(models.dtype)
        led, away = replace(led, image_latents=image), replace(away, image_latents=image)
    return led, away


def _moving(job: Job, models: ConditionModels) -> dict[str, Any]:
    """How the motion module acts where it is not as usual, as fields of the conditions."""
    said, at = job.motion_strength, job.motion_positions
    if said == MotionStrength() and at == MotionPositions():
        return {}
    scales = by_frame(said.frames, job.frames, "motion_strength.frames")
    return {
        "motion_strength": said.scale,
        "motion_blocks": dict(said.blocks or {}),
        "motion_frames": torch.tensor(scales, device=models.device) if scales else None,
        "motion_positions": Positions(stretch=at.stretch, offset=at.offset),
    }


def _embeddings(job: Job, models: ConditionModels) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Of the pictures and of none, for each IP-Adapter f 1 d or f 1 n d."""
    pairs = []
    for one in job.ip_adapters:
        encoder = models.once(
            "encoder", one.encoder,
            lambda one=one: _encoder(one.encoder, models),  # type: ignore[misc]
        )  # fmt: skip
        named = keyed(one.images, job.frames, "ip_adapters")
        pictures = {frame: read_image(path) for frame, path in named.items()}
        states = _adapter(models, one.path).form != "plain"
        pairs.append(embed_images(encoder, pictures, job.frames, states=states))
    return tuple(seen for seen, _ in pairs), tuple(unseen for _, unseen in pairs)


def _weights(job: Job, models: ConditionModels) -> tuple[Tensor, ...]:
    """Masks of all IP-Adapters, f 1 1 each; none where no adapter names weights."""
    if all(one.weights is None for one in job.ip_adapters):
        return ()
    lines = (by_frame(one.weights, job.frames, "ip_adapters.weights") for one in job.ip_adapters)
    return tuple(
        torch.tensor(line or [1.0] * job.frames, device=models.device).view(-1, 1, 1)
        for line in lines
    )


def _encoder(source: str, models: ConditionModels) -> CLIPVisionModelWithProjection:
    place = local_path(source, "image encoder", offline=models.offline)
    return load_image_encoder(place).to(models.device, models.dtype)


def _adapter(models: ConditionModels, source: str) -> IPAdapterWeights:
    return models.once(
        "ip_adapter", source,
        lambda: read_ip_adapter(local_path(source, offline=models.offline)),
    )  # fmt: skip
