"""A planned model loaded from its files: base, adapters merged, motion module.

`generate` and `inject` both load through here, in fp32 and in one order, so that an injected
folder gives the same frames as its parts.
"""

import torch

from ..adapters.lora import apply_lora, apply_motion_lora
from ..adapters.textual_inversion import apply_embedding
from ..checkpoints.base_model import BaseModel
from ..checkpoints.loading import load_base
from ..checkpoints.motion_module import load_motion_module
from ..motion import MotionModule
from ..planning.models import FoundImageModel, FoundModel
from ..weights.places import local_path


def load_model(found: FoundModel, *, offline: bool) -> tuple[BaseModel, MotionModule]:
    """Load and merge everything in fp32."""
    base = load_image_model(found, offline=offline)
    motion = load_motion_module(found.motion_path, version=found.spec.motion_version)
    for adapter in found.spec.motion_loras:
        apply_motion_lora(motion, local_path(adapter.path, offline=offline), adapter.scale)
    return base, motion


def load_image_model(found: FoundImageModel, *, offline: bool) -> BaseModel:
    """The image model with its adapters merged, in fp32."""
    spec = found.spec
    base = load_base(
        spec.base, vae=spec.vae, variant=spec.variant, dtype=torch.float32, offline=offline
    )
    if spec.prediction_type is not None:
        base.scheduler_config["prediction_type"] = spec.prediction_type
    for adapter in spec.loras:
        apply_lora(base, local_path(adapter.path, offline=offline), adapter.scale)
    for path in spec.embeddings:
        apply_embedding(base, local_path(path, offline=offline))
    return base
