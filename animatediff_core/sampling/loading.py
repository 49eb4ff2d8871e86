"""A planned model loaded from its files: base, adapters merged, motion module.

`generate` and `inject` both load through here, in one order and in the dtype that runs, so that an
injected folder gives the same frames as its parts. Weights are pages of their files until each is
converted. A weight that LoRAs change is computed in fp32 from the file's own numbers and rounded
once.
"""

import torch

from ..adapters.lora.merge import apply_loras
from ..adapters.lora.peft import lora_file
from ..adapters.textual_inversion import add_embedding, apply_embedding, bundled_embeddings
from ..checkpoints.base_model import BaseModel
from ..checkpoints.loading import load_base
from ..checkpoints.motion_module import load_motion_module
from ..motion import MotionModule
from ..planning.models import FoundImageModel, FoundModel
from ..weights.places import local_path
from ..weights.weight_file import open_weights


def load_model(
    found: FoundModel, *, dtype: torch.dtype = torch.float32, offline: bool
) -> tuple[BaseModel, MotionModule]:
    """Load and merge everything; the VAE is in fp32."""
    spec = found.spec
    base = load_image_model(found, dtype=dtype, offline=offline)
    motion = load_motion_module(found.motion_path, version=spec.motion_version, dtype=None)
    files = [(local_path(one.path, offline=offline), one.scale) for one in spec.motion_loras]
    apply_loras(motion, files, dtype)
    return base, motion.to(dtype)


def load_image_model(
    found: FoundImageModel, *, dtype: torch.dtype = torch.float32, offline: bool
) -> BaseModel:
    """The image model with its adapters merged."""
    spec = found.spec
    base = load_base(
        spec.base, vae=spec.vae, unet=spec.unet, variant=spec.variant, dtype=None, offline=offline
    )
    if spec.prediction_type is not None:
        base.scheduler_config["prediction_type"] = spec.prediction_type
    files = [(local_path(one.path, offline=offline), one.scale) for one in spec.loras]
    apply_loras(base, files, dtype)
    base.to("cpu", dtype)
    for path, _ in files:
        for embedding in bundled_embeddings(open_weights(lora_file(path))):
            add_embedding(base, embedding)
    for one in spec.embeddings:
        apply_embedding(base, local_path(one.path, offline=offline), one.word)
    return base
