"""SparseCtrl encoders out of files: the official checkpoints and diffusers' folders.

Both forms, for RGB pictures (their latents) and for scribbles, are told by their first
convolution. The encoder's structure is that of the UNet it controls, as in the official code.
"""

from pathlib import Path

import torch
from diffusers.models import UNet2DConditionModel

from ..checkpoints.motion_module import check_positions
from ..checkpoints.motion_names import is_position, site_name
from ..errors import CheckpointError
from ..motion import MotionConfig
from ..motion.config import Norm
from ..motion.sparse_ctrl import Reads, SparseControlNet
from ..weights.match import check_tensors, shapes_of
from .control_models import (
    EMBEDDING,
    ControlContent,
    check_family,
    control_frames,
    read_control,
)


def load_sparse_control(
    path: str | Path, unet: UNet2DConditionModel, *, frame_norm: Norm = "frame"
) -> SparseControlNet:
    """Read an encoder for this UNet; every tensor must find its place.

    `frame_norm` is official with "frame"; "clip" is how diffusers runs the same weights. Raises
    CheckpointError where the file is something else or of another family.
    """
    path = Path(path)
    content = read_control(path)
    if content.kind != "SparseCtrl":
        raise CheckpointError(f"{path}: is a ControlNet, which goes into controlnets")
    check_family(content, unet, path)
    reads = reads_of(content, path)
    motion = {ours: t for key, t in content.tensors.items() if (ours := site_name(key))}
    config = _config(content, unet, frame_norm, path)
    with torch.device("meta"):
        control = SparseControlNet(unet, config, reads, content.embedding_channels)
    check_positions(motion, config.max_frames, path)
    weights = {key: t for key, t in content.tensors.items() if not site_name(key)}
    weights |= {key: t for key, t in motion.items() if not is_position(key)}
    names = {key.removeprefix("controlnet."): key for key in control.state_dict()}
    expected = {name: tuple(control.get_parameter(key).shape) for name, key in names.items()}
    advice = "download it again, or use one of the base model's family"
    check_tensors(expected, shapes_of(weights), path, "SparseCtrl encoder", advice)
    control.load_state_dict({names[key]: t.float() for key, t in weights.items()}, assign=True)
    return control.requires_grad_(False).eval()


def reads_of(content: ControlContent, path: Path) -> Reads:
    """Whether an encoder reads latents (RGB) or pictures (scribbles)."""
    if f"{EMBEDDING}weight" in content.tensors:
        return "latents"
    if f"{EMBEDDING}conv_in.weight" in content.tensors:
        return "pictures"
    raise CheckpointError(f"{path}: lacks the first convolution of a SparseCtrl encoder; "
                          "download it again")  # fmt: skip


def _config(
    content: ControlContent,
    unet: UNet2DConditionModel,
    frame_norm: Norm,
    path: Path,
) -> MotionConfig:
    """Heads are 8 unless config.json says otherwise."""
    said = content.settings or {}
    heads = said.get("motion_num_attention_heads", 8)
    if isinstance(heads, list) and len(set(map(str, heads))) == 1:
        heads = heads[0]
    if said.get("concat_conditioning_mask", True) is not True:
        raise CheckpointError(f"{path}: its config.json leaves the mask of given frames out, "
                              "which no released encoder does; use a released one")  # fmt: skip
    try:
        return MotionConfig(
            block_out_channels=tuple(unet.config.block_out_channels),
            layers_per_block=unet.config.layers_per_block,
            max_frames=control_frames(content),
            frame_norm=frame_norm,
            num_attention_heads=heads,
            norm_num_groups=unet.config.norm_num_groups,
        )
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be a SparseCtrl encoder: {error}") from error
