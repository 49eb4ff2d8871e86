"""The diffusers form of a motion module: a MotionAdapter of the same weights."""

from typing import Any

import torch
from diffusers.models import MotionAdapter
from torch import Tensor

from ..errors import CheckpointError
from ..motion import MotionModule
from ..motion.module import FrameAttention, sinusoids
from .motion_names import FROM_DIFFUSERS


def motion_adapter(motion: MotionModule) -> MotionAdapter:
    """A MotionAdapter with the weights of a motion module.

    diffusers normalises over all frames at once, so its clips differ from ours if
    `frame_norm` is "frame". Raises CheckpointError if the two attentions of a block have positions
    of their own that differ: diffusers has one table for both.
    """
    config = motion.config
    adapter = MotionAdapter(
        block_out_channels=config.block_out_channels,
        motion_layers_per_block=config.layers_per_block,
        motion_mid_block_layers_per_block=1,
        motion_num_attention_heads=config.num_attention_heads,
        motion_norm_num_groups=config.norm_num_groups,
        motion_max_seq_length=config.max_frames,
        use_motion_mid_block=config.mid_block,
        conv_in_channels=config.conv_in_channels,
    )
    tensors = {diffusers_key(key): tensor for key, tensor in motion.state_dict().items()}
    own: dict[str, Any] = adapter.state_dict()
    left_out = {key for key in own if key.endswith("pos_embed.pe")}
    assert own.keys() - tensors.keys() == left_out
    assert not tensors.keys() - own.keys()
    adapter.load_state_dict({**own, **tensors, **_own_positions(motion)})
    return adapter


def stored_positions(motion: MotionModule) -> dict[str, Tensor]:
    """The positions of every attention, 1 f c each, by official name."""
    frames = motion.config.max_frames
    return {
        f"{name}.pos_encoder.pe": (
            sinusoids(frames, len(attention.to_q.weight), attention.to_q.weight)
            if attention.positions is None
            else attention.positions.to(attention.to_q.weight)
        )[None].clone()
        for name, attention in motion.named_modules()
        if isinstance(attention, FrameAttention)
    }


def _own_positions(motion: MotionModule) -> dict[str, Tensor]:
    """The positions of blocks, 1 f c each, by diffusers' name; none where they are sinusoids."""
    found: dict[str, Tensor] = {}
    if all(getattr(part, "positions", None) is None for part in motion.modules()):
        return found
    for key, table in stored_positions(motion).items():
        block = f"{diffusers_key(key.partition('.attention_blocks.')[0])}.pos_embed.pe"
        if not torch.equal(found.setdefault(block, table), table):
            raise CheckpointError(
                f"{block}: diffusers has one table of positions for both attentions of a block, "
                "but this module has two; save it in the official form"
            )
    return found


def diffusers_key(key: str) -> str:
    """An official key as diffusers names it."""
    key = key.replace(".temporal_transformer.", ".")
    for name, official in FROM_DIFFUSERS:
        key = key.replace(official, name)
    return key
