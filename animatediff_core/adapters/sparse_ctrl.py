"""SparseCtrl encoders (arXiv 2311.16933) out of the official checkpoints and diffusers' folders.

Both forms, for RGB images (their latents) and for scribbles, differ in their first convolution.
The encoder's structure is that of the UNet it controls, as in the official code.
"""

from pathlib import Path

import torch
from diffusers.models import UNet2DConditionModel

from ..checkpoints.empty_model import fill, without_weights
from ..checkpoints.file_report import ADVICE
from ..checkpoints.motion_module import own_positions, set_positions
from ..checkpoints.motion_names import is_position, site_name
from ..errors import CheckpointError
from ..motion import MotionConfig
from ..motion.config import Norm
from ..motion.sparse_ctrl import Reads, SparseControlNet
from ..weights.match import check_tensors, shapes_of
from .control_files import EMBEDDING, ControlInfo, open_control


def load_sparse_control(
    path: str | Path,
    unet: UNet2DConditionModel,
    *,
    frame_norm: Norm = "frame",
    dtype: torch.dtype | None = torch.float32,
) -> SparseControlNet:
    """Read an encoder for this UNet; every tensor must match a layer.

    `frame_norm` is official with "frame"; "clip" is how diffusers runs the same weights.
    With the dtype None each weight is as its file has it. Raises CheckpointError if the file is
    something else or of another family.
    """
    path = Path(path)
    info = open_control(path, "sparse_controls", unet)
    config = _config(info, unet, frame_norm)
    reads = _reads(info)

    def build(config: MotionConfig) -> SparseControlNet:
        return SparseControlNet(unet, config, reads, info.embedding_channels)

    control: SparseControlNet = without_weights(build, config)
    own = {name.removeprefix("controlnet."): name for name in control.state_dict()}
    expected = {name: tuple(control.get_parameter(key).shape) for name, key in own.items()}
    tensors = {site_name(name) or name: tensor for name, tensor in info.tensors().items()}
    weights = {name: tensor for name, tensor in tensors.items() if not is_position(name)}
    check_tensors(expected, shapes_of(weights), path, "SparseCtrl encoder", ADVICE)
    positions = own_positions(tensors, config.max_frames, path)
    fill(control, ((own[name], t) for name, t in weights.items()), dtype, path)
    set_positions(control, positions)
    return control.requires_grad_(False).eval()


def _reads(info: ControlInfo) -> Reads:
    """Whether an encoder reads latents (RGB) or images (scribbles)."""
    if f"{EMBEDDING}weight" in info.names:
        return "latents"
    if f"{EMBEDDING}conv_in.weight" in info.names:
        return "pictures"
    raise CheckpointError(
        f"{info.path}: lacks the first convolution of a SparseCtrl encoder; download it again"
    )


def _config(info: ControlInfo, unet: UNet2DConditionModel, frame_norm: Norm) -> MotionConfig:
    """Heads are 8 unless config.json says otherwise."""
    settings = info.file.config or {}
    heads = settings.get("motion_num_attention_heads", 8)
    if isinstance(heads, list) and len(set(map(str, heads))) == 1:
        heads = heads[0]
    if settings.get("concat_conditioning_mask", True) is not True:
        raise CheckpointError(
            f"{info.path}: its config.json leaves out the mask of the frames with images, which no "
            "released encoder does; use a released one"
        )
    try:
        return MotionConfig(
            block_out_channels=tuple(unet.config.block_out_channels),
            layers_per_block=unet.config.layers_per_block,
            max_frames=info.max_frames,
            frame_norm=frame_norm,
            num_attention_heads=heads if isinstance(heads, int) else 0,
            norm_num_groups=unet.config.norm_num_groups,
        )
    except ValueError as error:
        raise CheckpointError(f"{info.path}: cannot be a SparseCtrl encoder: {error}") from error
