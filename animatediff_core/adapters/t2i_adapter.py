"""T2I-Adapters (arXiv 2302.08453): full, light and SDXL's, from diffusers' folders or single files
in diffusers' names or the first release's. The shapes of the tensors say how one is built."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models import UNet2DConditionModel

from ..checkpoints.empty_model import fill, without_weights
from ..checkpoints.families import families_with, family_of
from ..checkpoints.file_report import ADVICE, FileReport, require
from ..errors import CheckpointError
from ..weights.match import check_tensors, shapes_of
from ..weights.weight_file import WeightFile, open_model

if TYPE_CHECKING:  # slow to import, and few jobs use one
    from diffusers.models.adapter import T2IAdapter

_PREFIX = "adapter."
_RESNET = re.compile(r"adapter\.body\.(\d+)\.resnets\.(\d+)\.block1\.weight$")


@dataclass(frozen=True, kw_only=True)
class T2IInfo(FileReport):
    """A T2I-Adapter."""

    file: WeightFile = field(repr=False)
    names: dict[str, str] = field(repr=False)
    """diffusers' name of each tensor, by the file's own."""
    light: bool
    channels: tuple[int, ...]
    """Channels that it adds to each block of the UNet."""
    num_res_blocks: int
    in_features: int
    """Channels of an image times the pixels of one latent."""


@dataclass(frozen=True, kw_only=True)
class T2IForm:
    """How an adapter is built, by the names of diffusers' T2IAdapter."""

    adapter_type: str
    in_channels: int
    """3, or 1 for greyscale images."""
    channels: tuple[int, ...]
    num_res_blocks: int
    downscale_factor: int
    """Width and height in pixels must be multiples of it."""


def recognise_t2i_adapter(file: WeightFile) -> T2IInfo | None:
    """A full or light T2I-Adapter, in diffusers' names or the first release's."""
    names = _diffusers_names(file.shapes)
    shapes = {new: file.shapes[key] for key, new in names.items()}
    numbers = [m.groups() for m in map(_RESNET.match, shapes) if m]
    if not numbers:
        return None
    light = "adapter.body.0.out_conv.weight" in shapes
    first = "adapter.body.0.in_conv.weight" if light else "adapter.conv_in.weight"
    end = "out_conv.weight" if light else "resnets.0.block1.weight"
    blocks = range(max(int(block) for block, _ in numbers) + 1)
    is_diffusers = any(key.startswith(_PREFIX) for key in file.shapes)
    channels = tuple(shapes.get(f"adapter.body.{i}.{end}", (0,))[0] for i in blocks)
    families = families_with(channels) or families_with(channels[:-1])  # SDXL's has one more
    return T2IInfo(
        path=file.path,
        kind="T2I-Adapter",
        family=" or ".join(families) or "unknown",
        goes_in="t2i_adapters",
        details={
            "layout": "diffusers" if is_diffusers else "original",
            "form": "light" if light else "full",
        },
        file=file,
        names=names,
        light=light,
        channels=channels,
        num_res_blocks=max(int(number) for _, number in numbers) + 1,
        in_features=shapes.get(first, (0, 0))[1],
    )


def t2i_form(
    info: T2IInfo, block_out_channels: Sequence[int], vae_scale_factor: int, source: str | Path
) -> T2IForm:
    """How an adapter is built for a UNet of these channels and a VAE of this scale factor.

    Raises CheckpointError if it was made for another UNet.
    """
    forms = [("light_adapter" if info.light else "full_adapter", vae_scale_factor)]
    if not info.light:
        forms.append(("full_adapter_xl", 2 * vae_scale_factor))
    for kind, scale in forms:
        made_for = info.channels[:-1] if kind == "full_adapter_xl" else info.channels
        for in_channels in (3, 1):
            fits = made_for == tuple(block_out_channels)
            if fits and info.in_features == in_channels * scale**2:
                return T2IForm(
                    adapter_type=kind,
                    in_channels=in_channels,
                    channels=info.channels[:-1] if info.light else info.channels,
                    num_res_blocks=info.num_res_blocks,
                    downscale_factor=scale,
                )
    families = families_with(block_out_channels) or [family_of(block_out_channels, 0)]
    raise CheckpointError(
        f"{source}: is a T2I-Adapter for another base model (it adds "
        f"{', '.join(map(str, info.channels))} channels to the levels) than this one, "
        f"{' or '.join(families)}; use one of its family"
    )


def load_t2i_adapter(
    path: str | Path,
    unet: UNet2DConditionModel,
    vae_scale_factor: int,
    dtype: torch.dtype | None = torch.float32,
) -> "T2IAdapter":
    """A T2I-Adapter for this UNet; every tensor must match a layer.

    With the dtype None each weight is as its file has it.
    """
    from diffusers.models.adapter import T2IAdapter

    path = Path(path)
    info = require(recognise_t2i_adapter(open_model(path)), "t2i_adapters", path)
    form = t2i_form(info, unet.config.block_out_channels, vae_scale_factor, path)

    def build(form: T2IForm) -> Any:
        return T2IAdapter(
            in_channels=form.in_channels,
            channels=list(form.channels),
            num_res_blocks=form.num_res_blocks,
            downscale_factor=form.downscale_factor,
            adapter_type=form.adapter_type,
        )

    adapter: T2IAdapter = without_weights(build, form)
    found = {new: info.file.shapes[key] for key, new in info.names.items()}
    check_tensors(shapes_of(adapter), found, path, "T2I-Adapter", ADVICE)
    tensors = ((info.names[key], tensor) for key, tensor in info.file.tensors().items())
    fill(adapter, tensors, dtype, path)
    return adapter.requires_grad_(False).eval()


def _diffusers_names(keys: Iterable[str]) -> dict[str, str]:
    """diffusers' name of each tensor. The first release counts a full adapter's ResNets through,
    and calls a light one's body."""
    plain = {key: key.removeprefix("module.").removeprefix(_PREFIX) for key in keys}
    if any(".resnets." in name for name in plain.values()):
        return {key: _PREFIX + name for key, name in plain.items()}
    if any(".out_conv." in name for name in plain.values()):
        light = re.compile(r"^(body\.\d+)\.body\.")
        return {key: _PREFIX + light.sub(r"\1.resnets.", name) for key, name in plain.items()}
    found = (re.match(r"body\.(\d+)\.in_conv\.", name) for name in plain.values())
    widens = [int(match[1]) for match in found if match]
    each = min(widens, default=1) or 1  # the second block begins where channels change

    def renamed(name: str) -> str:
        number = re.match(r"body\.(\d+)\.(.+)", name)
        if number is None:
            return name
        block, inner = divmod(int(number[1]), each)
        if number[2].startswith("in_conv."):
            return f"body.{block}.{number[2]}" if inner == 0 else name
        return f"body.{block}.resnets.{inner}.{number[2]}"

    return {key: _PREFIX + renamed(name) for key, name in plain.items()}
