"""The diffusers form of a motion module: a MotionAdapter of the same weights."""

from typing import Any

from diffusers.models import MotionAdapter

from ..motion import MotionModule
from .motion_names import FROM_DIFFUSERS


def motion_adapter(motion: MotionModule) -> MotionAdapter:
    """A MotionAdapter with the weights of a motion module.

    diffusers normalises over all frames at once, so its clips differ from ours if
    `frame_norm` is "frame".
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
    adapter.load_state_dict({**own, **tensors})
    return adapter


def diffusers_key(key: str) -> str:
    """An official key as diffusers names it."""
    key = key.replace(".temporal_transformer.", ".")
    for name, official in FROM_DIFFUSERS:
        key = key.replace(official, name)
    return key
