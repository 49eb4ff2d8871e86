"""The models that lead the tiny family: a ControlNet on edges, and an IP-Adapter with its encoder.

Both are trained by the same stages as anyone's, on drawn pictures of seen combinations.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from ..training.stages.controlnet import CONTROLNET_FILE
from ..training.stages.ip_adapter import IP_ADAPTER_FILE
from ..weights.files import write_tensors
from ..weights.places import MODELS
from ..weights.weight_file import open_weights
from .members import PLAIN_MEMBER, write_pictures
from .vision import finished_image_encoder, train_image_encoder

PICTURES = 4000
EDGES = "edges"
PICTURE = "picture"
ENCODER = "image_encoder"
_FILES = {EDGES: CONTROLNET_FILE, PICTURE: IP_ADAPTER_FILE}
STAGES = tuple(_FILES)


def prepare(folder: Path) -> Iterator[str]:
    """The image encoder and the pictures that both stages learn from, where they are not there."""
    for step, right in train_image_encoder(folder / "vision.pt"):
        yield f"vision: step {step}, {right:.1%} of attributes named right"
    if not (folder / ENCODER).is_dir():
        finished_image_encoder(folder / "vision.pt").save_pretrained(folder / ENCODER)
    write_pictures(PLAIN_MEMBER, folder / "pictures", PICTURES)


def publish_control(folder: Path) -> list[Path]:
    """Put what both stages have left, in fp16, where the package finds it."""
    place = MODELS / "tiny"
    written = []
    for stage, name in _FILES.items():
        content = open_weights(folder / stage / name)
        halves = {key: tensor.half() for key, tensor in content.tensors().items()}
        written.append(place / f"{stage}.safetensors")
        write_tensors(written[-1], halves, content.metadata)
    encoder = finished_image_encoder(folder / "vision.pt")
    nn.Module.to(encoder, dtype=torch.float16)
    encoder.save_pretrained(place / ENCODER)
    return [*written, place / ENCODER]
