"""How large a base model is, by the headers of its files."""

from dataclasses import dataclass
from math import prod
from pathlib import Path

from ..weights.folder import base_layout, local_names, shards
from ..weights.weight_file import open_weights

_UNUSED = ("model_ema.", "optimizer_states", "first_stage_model.loss.")


@dataclass(frozen=True)
class ModelSize:
    """What loading it takes."""

    num_weights: int
    """Of all parts: UNet, VAE, text encoders."""
    vae_channels: int
    """Features of the VAE's decoder at the pictures' size."""


def weigh(place: Path, source: str, variant: str | None) -> ModelSize:
    """A folder or single file that planning has found to be a base model; nothing is loaded."""
    files = [place]
    if place.is_dir():
        layout = base_layout(local_names(place), variant, source)
        files = [f for part, w in layout.weights.items() for f in shards(place / part, w)]
    shapes = [item for file in files for item in open_weights(file).shapes.items()]
    used = [(name, shape) for name, shape in shapes if not name.startswith(_UNUSED)]
    ends = [shape for name, shape in used if name.endswith("decoder.conv_out.weight")]
    return ModelSize(sum(prod(shape) for _, shape in used), ends[0][1] if ends else 128)
