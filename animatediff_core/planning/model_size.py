"""The size of a base model, from the headers of its files."""

from dataclasses import dataclass
from math import prod
from pathlib import Path

from ..weights.folder import base_layout, local_names, shards
from ..weights.weight_file import open_weights

_UNUSED = ("model_ema.", "optimizer_states", "first_stage_model.loss.")


@dataclass(frozen=True)
class ModelSize:
    """The size of a base model."""

    num_weights: int
    """Weights of all parts: UNet, VAE, text encoders."""
    vae_channels: int
    """Features of the VAE's decoder at the frames' full size."""


def model_size(path: Path, source: str, variant: str | None) -> ModelSize:
    """Size of a base model's folder or single file; nothing is loaded."""
    files = [path]
    if path.is_dir():
        layout = base_layout(local_names(path), variant, source)
        files = [f for part, w in layout.weights.items() for f in shards(path / part, w)]
    shapes = [item for file in files for item in open_weights(file).shapes.items()]
    used = [(name, shape) for name, shape in shapes if not name.startswith(_UNUSED)]
    ends = [shape for name, shape in used if name.endswith("decoder.conv_out.weight")]
    return ModelSize(sum(prod(shape) for _, shape in used), ends[0][1] if ends else 128)
