"""T2I-Adapters (arXiv 2302.08453): full, light and SDXL's, from diffusers' folders or single files
in diffusers' names or the first release's. Their structure is told from the tensors' shapes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models import UNet2DConditionModel
from torch import Tensor

from ..checkpoints.families import families_with
from ..errors import CheckpointError
from ..weights.folder import weight_files
from ..weights.match import check_tensors, shapes_of
from ..weights.weight_file import open_weights

if TYPE_CHECKING:  # slow to import, and few jobs use one
    from diffusers.models.adapter import T2IAdapter

_PREFIX = "adapter."
_RESNET = re.compile(r"adapter\.body\.(\d+)\.resnets\.(\d+)\.block1\.weight$")


@dataclass(frozen=True)
class T2IContent:
    """What a file or folder holds of a T2I-Adapter."""

    path: Path
    tensors: dict[str, Any]
    """By diffusers' names: tensors, or shapes where it was only listed."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The same by name as shapes."""
        return {key: tuple(getattr(t, "shape", t)) for key, t in self.tensors.items()}


@dataclass(frozen=True, kw_only=True)
class T2IForm:
    """How an adapter is built, by the names of diffusers' T2IAdapter."""

    adapter_type: str
    in_channels: int
    """3, or 1 for greys."""
    channels: tuple[int, ...]
    num_res_blocks: int
    downscale_factor: int
    """Width and height in pixels must be multiples of it."""


def read_t2i_adapter(path: str | Path, *, shapes_only: bool = False) -> T2IContent:
    """Read a T2I-Adapter; CheckpointError where it is something else."""
    path = Path(path)
    found: dict[str, Any] = {}
    for file in weight_files(path) if path.is_dir() else [path]:
        opened = open_weights(file)
        found |= opened.shapes if shapes_only else opened.tensors()
    named = _diffusers_names(found)
    if not any(_RESNET.match(key) for key in named):
        raise CheckpointError(f"{path}: is no T2I-Adapter; `animatediff inspect` says what it is")
    return T2IContent(path, named)


def t2i_form(content: T2IContent, levels: Sequence[int], factor: int) -> T2IForm:
    """How it is built, for a UNet of these levels and a VAE with `factor` pixels for one latent.

    Raises CheckpointError where it was made for another UNet.
    """
    shapes, ours = content.shapes, tuple(levels)
    numbers = [m.groups() for m in map(_RESNET.match, shapes) if m]
    light = "adapter.body.0.out_conv.weight" in shapes
    end = "out_conv.weight" if light else "resnets.0.block1.weight"
    blocks = range(max(int(block) for block, _ in numbers) + 1)
    gives = tuple(shapes.get(f"adapter.body.{i}.{end}", (0,))[0] for i in blocks)
    first = "adapter.body.0.in_conv.weight" if light else "adapter.conv_in.weight"
    taken = shapes.get(first, (0, 0))[1]
    forms = [("light_adapter", factor)] if light else [("full_adapter", factor)]
    if not light:
        forms.append(("full_adapter_xl", 2 * factor))
    for kind, scale in forms:
        made_for = gives[:-1] if kind == "full_adapter_xl" else gives
        for in_channels in (3, 1):
            if taken == in_channels * scale**2 and made_for == ours:
                return T2IForm(
                    adapter_type=kind,
                    in_channels=in_channels,
                    channels=gives[:-1] if light else gives,
                    num_res_blocks=max(int(number) for _, number in numbers) + 1,
                    downscale_factor=scale,
                )
    family = " or ".join(families_with(ours)) or f"levels {', '.join(map(str, ours))}"
    raise CheckpointError(
        f"{content.path}: is a T2I-Adapter for another base model (it adds "
        f"{', '.join(map(str, gives))} channels to the levels) than this one, {family}; use one of "
        "its family"
    )


def load_t2i_adapter(path: str | Path, unet: UNet2DConditionModel, factor: int) -> "T2IAdapter":
    """A T2I-Adapter for this UNet in fp32; every tensor must find its place."""
    from diffusers.models.adapter import T2IAdapter

    content = read_t2i_adapter(path)
    form = t2i_form(content, unet.config.block_out_channels, factor)
    with torch.device("meta"):
        adapter = T2IAdapter(
            in_channels=form.in_channels,
            channels=list(form.channels),
            num_res_blocks=form.num_res_blocks,
            downscale_factor=form.downscale_factor,
            adapter_type=form.adapter_type,
        )
    advice = "download it again, or use one of the base model's family"
    check_tensors(shapes_of(adapter), content.shapes, content.path, "T2I-Adapter", advice)
    tensors: dict[str, Tensor] = {key: t.float() for key, t in content.tensors.items()}
    adapter.load_state_dict(tensors, assign=True)
    made: T2IAdapter = adapter.requires_grad_(False).eval()
    return made


def _diffusers_names(found: dict[str, Any]) -> dict[str, Any]:
    """The first release counts a full adapter's ResNets through, and calls a light one's body."""
    plain = {key.removeprefix("module.").removeprefix(_PREFIX): t for key, t in found.items()}
    if any(".resnets." in key for key in plain):
        return {_PREFIX + key: tensor for key, tensor in plain.items()}
    if any(".out_conv." in key for key in plain):
        light = re.compile(r"^(body\.\d+)\.body\.")
        return {_PREFIX + light.sub(r"\1.resnets.", key): t for key, t in plain.items()}
    widens = [int(m[1]) for key in plain if (m := re.match(r"body\.(\d+)\.in_conv\.", key))]
    each = min(widens, default=1) or 1  # the second level begins where channels change

    def renamed(key: str) -> str:
        number = re.match(r"body\.(\d+)\.(.+)", key)
        if number is None:
            return key
        block, inner = divmod(int(number[1]), each)
        if number[2].startswith("in_conv."):
            return f"body.{block}.{number[2]}" if inner == 0 else key
        return f"body.{block}.resnets.{inner}.{number[2]}"

    return {_PREFIX + renamed(key): tensor for key, tensor in plain.items()}
