"""ControlNets out of diffusers' folders and single files, in the first release's names or
diffusers'. A file has no configuration: its structure is that of the UNet it controls."""

from pathlib import Path

import torch
from diffusers.models import ControlNetModel, UNet2DConditionModel

from ..checkpoints.diffusers_folder import open_part
from ..errors import CheckpointError
from ..weights.folder import weight_files
from ..weights.match import check_tensors, shapes_of
from .control_models import ControlContent, check_family, read_control


def load_controlnet(path: str | Path, unet: UNet2DConditionModel) -> ControlNetModel:
    """Read a ControlNet for this UNet in fp32; every tensor must find its place.

    Raises CheckpointError where the file is something else or of another family.
    """
    path = Path(path)
    content = read_control(path, shapes_only=path.is_dir())
    if content.kind != "ControlNet":
        raise CheckpointError(f"{path}: is a SparseCtrl encoder, which goes into sparse_controls")
    check_family(content, unet, path)
    control = _from_folder(path) if path.is_dir() else _from_file(content, unet, path)
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
    settings = dict(ControlNetModel.from_unet(
        unet, conditioning_embedding_out_channels=embedding_channels,
        conditioning_channels=condition_channels, load_weights_from_unet=False,
    ).config)  # fmt: skip
    if small:
        settings["down_block_types"] = ("DownBlock2D",) * len(unet.config.block_out_channels)
        settings["mid_block_type"] = "UNetMidBlock2D"
    control: ControlNetModel = ControlNetModel.from_config(settings)
    return control


def _from_folder(path: Path) -> ControlNetModel:
    control: ControlNetModel = open_part(ControlNetModel, path, weight_files(path), torch.float32)
    return control


def _from_file(content: ControlContent, unet: UNet2DConditionModel, path: Path) -> ControlNetModel:
    first = content.shapes.get("controlnet_cond_embedding.conv_in.weight", (0, 3))
    with torch.device("meta"):
        control = controlnet_for(
            unet, first[1], content.embedding_channels,
            small=not any(".attentions." in key for key in content.shapes),
        )  # fmt: skip
    advice = "download it again, or use one of the base model's family"
    check_tensors(shapes_of(control), content.shapes, path, "ControlNet", advice)
    control.load_state_dict({k: t.float() for k, t in content.tensors.items()}, assign=True)
    return control
