"""ControlNets (arXiv 2302.05543) out of diffusers' folders and single files, in the first
release's names or diffusers'. A file has no configuration: its structure is that of its UNet."""

from pathlib import Path

import torch
from diffusers.models import ControlNetModel, UNet2DConditionModel

from ..checkpoints.diffusers_folder import open_part
from ..checkpoints.empty_model import emptied, fill, without_weights
from ..checkpoints.file_report import ADVICE
from ..weights.folder import weight_files
from ..weights.match import check_tensors, shapes_of
from .control_files import EMBEDDING, ControlInfo, open_control


def load_controlnet(
    path: str | Path, unet: UNet2DConditionModel, dtype: torch.dtype | None = torch.float32
) -> ControlNetModel:
    """Read a ControlNet for this UNet; every tensor must match a layer.

    With the dtype None each weight is as its file has it. Raises CheckpointError if the file is
    something else or of another family.
    """
    path = Path(path)
    info = open_control(path, "controlnets", unet)
    control: ControlNetModel
    if path.is_dir():
        control = open_part(ControlNetModel, path, weight_files(path), dtype)
    else:
        control = _from_file(info, unet, dtype)
    return control.requires_grad_(False).eval()


def controlnet_for(
    unet: UNet2DConditionModel,
    condition_channels: int,
    embedding_channels: tuple[int, ...],
    *,
    small: bool,
) -> ControlNetModel:
    """The structure of a ControlNet for this UNet, its weights drawn at random.

    A small one has ResNets alone and reads no text, as those that diffusers trained for SDXL.
    """
    structure = ControlNetModel.from_unet(
        unet,
        conditioning_embedding_out_channels=embedding_channels,
        conditioning_channels=condition_channels,
        load_weights_from_unet=False,
    )
    settings = dict(structure.config)
    if small:
        settings["down_block_types"] = ("DownBlock2D",) * len(unet.config.block_out_channels)
        settings["mid_block_type"] = "UNetMidBlock2D"
    control: ControlNetModel = ControlNetModel.from_config(settings)
    return control


def _from_file(
    info: ControlInfo, unet: UNet2DConditionModel, dtype: torch.dtype | None
) -> ControlNetModel:
    first = info.shapes.get(f"{EMBEDDING}conv_in.weight", (0, 3))
    small = not any(".attentions." in name for name in info.names)

    def build(channels: int) -> ControlNetModel:
        return controlnet_for(unet, channels, info.embedding_channels, small=small)

    control: ControlNetModel = without_weights(build, first[1])
    check_tensors(shapes_of(control), info.shapes, info.path, "ControlNet", ADVICE)
    fill(control, emptied(info.tensors()), dtype, info.path)
    return control
