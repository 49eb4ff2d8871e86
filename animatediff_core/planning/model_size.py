"""How large a base model is, by the headers of its files."""

from dataclasses import dataclass
from math import prod
from pathlib import Path

from ..weights.files import read_shapes
from ..weights.folder import base_layout, local_names

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
        files = [
            place / part / name
            for part, weights in layout.weights.items()
            for name in weights.files
            if not name.endswith(".json")
        ]
    shapes = {f"{file}:{key}": shape for file in files for key, shape in read_shapes(file).items()}
    used = {key: s for key, s in shapes.items() if not key.split(":")[-1].startswith(_UNUSED)}
    ends = [shape for key, shape in used.items() if key.endswith("decoder.conv_out.weight")]
    return ModelSize(sum(map(prod, used.values())), ends[0][1] if ends else 128)
