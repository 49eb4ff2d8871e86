"""Families of base models, told from names and shapes alone.

The configurations in the package are those of the families that can be animated: SD1.x, SD2.x
(2.0 and 2.1 have one structure) and SDXL. Others are known by name, so that they can be refused.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..weights.weight_file import Shapes

CONFIGS = Path(__file__).parent.parent / "models" / "configs"
FOLDERS = {"SD1.5": "sd15", "SD2": "sd21", "SDXL": "sdxl"}
"""Families whose configurations are in the package, and where."""
UNET = "model.diffusion_model."
EMA = "model_ema.diffusion_model"
"""Averaged weights; behind this prefix the names have lost their dots."""
VAE = "first_stage_model."
NO_TEXT = "which has no text encoder inside"
INPUTS = {5: "depth", 7: "upscaler", 8: "InstructPix2Pix", 9: "inpainting"}
_TRANSFORMERS = {
    "joint_blocks.0.": "Stable Diffusion 3", "double_blocks.0.": "Flux",
    "double_layers.0.": "AuraFlow", "clip_txt_mapper.": "Stable Cascade",
    "cap_embedder.": "Lumina", "head.modulation": "Wan", "patchify_proj.": "LTX-Video",
    "adaln_single.": "PixArt",
}  # fmt: skip
_READS_TEXT = re.compile(r"attn2\.?to_k\.?weight$")


@dataclass(frozen=True, kw_only=True)
class SingleFile:
    """The kind of a single-file checkpoint."""

    family: str
    """A key of FOLDERS, or the name of a family that cannot be animated."""
    why_not: str | None = None
    """What keeps it from being animated, in words, or None."""
    vae: bool = False
    """Whether a VAE is inside."""
    averaged: bool = False
    """Whether the UNet is there only as its averaged weights (EMA)."""


def family_of(block_out_channels: Sequence[int], cross_attention_dim: int) -> str:
    """The name of a UNet's family; another UNet is named by its channels: UNet 48-96-160."""
    channels = tuple(block_out_channels)
    for family in FOLDERS:
        if unet_shape(family) == (channels, cross_attention_dim):
            return family
    return f"UNet {'-'.join(map(str, channels))}"


def families_with(block_out_channels: Sequence[int]) -> list[str]:
    """The families that a motion module of these channels fits: it reads no text, so SD1.x's fit
    SD2.x as well."""
    return [family for family in FOLDERS if unet_shape(family)[0] == tuple(block_out_channels)]


def families_of(shapes: Shapes) -> tuple[str, ...]:
    """The families that the down blocks of a UNet or ControlNet fit, in diffusers' names.

    There are several if it reads no text; none if it has no down blocks.
    """
    channels: list[int] = []
    while shape := shapes.get(f"down_blocks.{len(channels)}.resnets.0.conv1.weight"):
        channels.append(shape[0])
    width = text_width(shapes)
    if not width and (families := families_with(channels)):
        return tuple(families)
    return (family_of(channels, width),) if channels else ()


def family_of_unet(unet: Any) -> str:
    """The family of a loaded UNet."""
    width = unet.config.cross_attention_dim
    return family_of(unet.config.block_out_channels, width if isinstance(width, int) else width[0])


def text_width(shapes: Shapes) -> int:
    """Features of the text that a UNet's cross-attention reads; 0 if it reads none."""
    widths = (s[1] for name, s in shapes.items() if len(s) == 2 and _READS_TEXT.search(name))
    return max(widths, default=0)


def family_reading(width: int) -> str | None:
    """The family whose cross-attention reads text of a width."""
    return next((family for family in FOLDERS if unet_shape(family)[1] == width), None)


def unet_shape(family: str) -> tuple[tuple[int, ...], int]:
    """Levels and text width of a family in the package."""
    config = part_config(family, "unet")
    return tuple(config["block_out_channels"]), int(config["cross_attention_dim"])


def part_config(family: str, part: str) -> dict[str, Any]:
    """The configuration of a part of a family in the package."""
    config: dict[str, Any] = json.loads(
        (CONFIGS / FOLDERS[family] / part / "config.json").read_text("utf-8")
    )
    return config


@dataclass(frozen=True)
class UNetLayout:
    """How the names of a UNet in a file are spelled."""

    prefix: str
    first: str
    """The weight of its first convolution, without the prefix."""

    @property
    def original(self) -> bool:
        """Whether they are the first release's."""
        return self.first.startswith("input_blocks")


def unet_layout(shapes: Shapes) -> UNetLayout | None:
    """The spelling of a UNet; None if the file has none."""
    for first, second in (
        ("input_blocks.0.0.weight", "input_blocks.1.0.in_layers.0.weight"),
        ("conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"),
    ):
        for prefix in ("", UNET, "unet.", "module.", "diffusion_model."):
            shape = shapes.get(prefix + first, ())
            if len(shape) == 4 and prefix + second in shapes:
                return UNetLayout(prefix, first)
    return None


def count_temporal(shapes: Shapes) -> int:
    """Tensors of a motion module that a web UI saved among a checkpoint's own."""
    return sum(".temporal_transformer." in key for key in shapes)


def single_file_of(shapes: Shapes) -> SingleFile | None:
    """The kind of a single-file checkpoint; None if the file is none at all."""
    averaged = not any(key.startswith(UNET) for key in shapes)
    prefix = EMA if averaged else UNET
    unet = {
        key.removeprefix(prefix).replace(".", ""): shape
        for key, shape in shapes.items()
        if key.startswith(prefix)
    }
    first = unet.get("input_blocks00weight")
    if first is None or len(first) != 4:
        return _other(shapes, bool(unet))
    width = text_width(unet)
    known = family_reading(width)
    family = known or f"text width {width}"
    why_not = None if known else "which is no known family"
    if first[1] != 4:
        use = INPUTS.get(first[1], f"{first[1]}-channel")
        family, why_not = f"{family} {use}", f"whose UNet reads {first[1]} channels instead of 4"
    elif "conditioner.embedders.0.model.ln_final.weight" in shapes:
        family, why_not = "SDXL refiner", "which only finishes images of SDXL's base"
    elif "edm_mean" in shapes or "edm_vpred.sigma_max" in shapes:
        family, why_not = f"{family} EDM", "whose noise schedule no motion module knows"
    elif family == "SD2" and "label_emb00weight" in unet:
        family, why_not = "SD2 unCLIP", "which reads images besides text"
    elif not any(key.startswith(("cond_stage", "conditioner")) for key in shapes):
        why_not = NO_TEXT
    vae = any(k.startswith(VAE) for k in shapes)
    return SingleFile(family=family, why_not=why_not, vae=vae, averaged=averaged)


def _other(shapes: Shapes, whole: bool) -> SingleFile | None:
    """Families without Stable Diffusion's UNet; `whole`: the names have its prefix."""
    bare = [key.removeprefix(UNET) for key in shapes]
    if any(key.startswith(("controlnet_", "control_")) for key in bare):
        return None
    for start, family in _TRANSFORMERS.items():
        if any(key.startswith(start) for key in bare):
            return SingleFile(family=family, why_not="which no motion module fits")
    if not whole:
        return None
    if any(key.startswith("input_blocks.") for key in bare):
        return SingleFile(family="unknown", why_not="which lacks the first layer of its UNet")
    return SingleFile(family="unknown", why_not="whose UNet is not Stable Diffusion's")


def check_single_file(shapes: Shapes, source: str, *, vae_given: bool) -> SingleFile:
    """The kind of a file that can be a base model here; CheckpointError if it cannot."""
    kind = single_file_of(shapes)
    if kind is None:
        raise CheckpointError(
            f"{source}: is no base checkpoint (it has no {UNET.rstrip('.')} tensors); "
            "`animatediff inspect` says what it is"
        )
    if kind.why_not is not None:
        of_family = "" if kind.family == "unknown" else f" of family {kind.family}"
        raise CheckpointError(
            f"{source}: is a checkpoint{of_family}, {kind.why_not}; use a full checkpoint of "
            "SD1.x, SD2.x or SDXL"
        )
    if not kind.vae and not vae_given:
        raise CheckpointError(
            f"{source}: has no VAE inside; name one with --vae (vae: in a prompt file)"
        )
    return kind
