"""The models that guide the tiny family's clips: a ControlNet on edges, and an IP-Adapter.

Both are trained by the same stages as anyone's, on drawn images of seen combinations.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from ..training.stages.controlnet import CONTROLNET_FILE
from ..training.stages.ip_adapter import IP_ADAPTER_FILE
from ..weights.places import MODELS
from .members import PLAIN_MEMBER, write_images
from .vision import finished_image_encoder, train_image_encoder

IMAGES = 4000
ENCODER = "image_encoder"
STAGES = {"edges": CONTROLNET_FILE, "picture": IP_ADAPTER_FILE}
"""The trained file of each stage."""


def prepare(folder: Path) -> Iterator[str]:
    """The image encoder and the images that both stages learn from, unless they are there."""
    for step, right in train_image_encoder(folder / "vision.pt"):
        yield f"vision: step {step}, {right:.1%} of attributes named right"
    if not (folder / ENCODER).is_dir():
        finished_image_encoder(folder / "vision.pt").save_pretrained(folder / ENCODER)
    write_images(PLAIN_MEMBER, folder / "pictures", IMAGES)


def publish_encoder(folder: Path) -> Path:
    """Put the image encoder, in fp16, where the package finds it."""
    encoder = finished_image_encoder(folder / "vision.pt")
    nn.Module.to(encoder, dtype=torch.float16)
    encoder.save_pretrained(MODELS / "tiny" / ENCODER)
    return MODELS / "tiny" / ENCODER
