"""The layer that a LoRA's name means, in one spelling: `down_blocks_0_attentions_0_…_to_q`.

Text encoders' layers begin with `te1_` and `te2_`. Names of the original Stable Diffusion code
(`input_blocks_4_1_…`), which kohya's trainer uses for SDXL, become diffusers' ones; so do
diffusers' names of motion modules the official ones.
"""

import re

from ...checkpoints.motion_names import FROM_DIFFUSERS
from ...checkpoints.sd_names import OPEN_CLIP

_DIFFUSERS_SITE = re.compile(
    r"^((?:down_blocks_\d+|up_blocks_\d+|mid_block)_motion_modules_\d+)_(?=transformer_blocks_)"
)
_PREFIXES = (
    (r"^(module\.|base_model\.model\.)", ""),
    (r"^((lora|lycoris|oft)_unet_|unet\.|(model\.)?diffusion_model\.)", ""),
    (r"^base_model\.model\.", ""),
    (r"^lycoris_(?=(down|mid|up|input|middle|output)_block)", ""),
    (r"^((lora|lycoris|oft)_te1?_|text_encoder(_1)?\.)|^(?=text_model\.)", "te1_"),
    (r"^(text_encoders\.)?clip_[lh]\.(transformer\.)?", "te1_"),
    (r"^((lora|lycoris|oft)_te2_|text_encoder_2\.)", "te2_"),
    (r"^(text_encoders\.)?clip_g\.(transformer\.)?", "te2_"),
    (r"^(te[12]_)base_model\.model\.", r"\1"),
)
"""What each program writes before a layer's name."""


def plain_name(name: str) -> str:
    """One spelling for every dialect of a LoRA: one prefix a model, dots as underscores."""
    for written, plain in _PREFIXES:
        name = re.sub(written, plain, name)
    name = re.sub(r"[._]to_out$", "_to_out_0", name).replace(".", "_")
    if site := _DIFFUSERS_SITE.match(name):
        name = f"{site[1]}_temporal_transformer_{name[site.end() :]}_"
        for diffusers, official in FROM_DIFFUSERS:
            name = name.replace(diffusers.replace(".", "_"), official.replace(".", "_"))
        name = name[:-1]
    return _text_name(name) if name.startswith(("te1_", "te2_")) else name


def _text_name(name: str) -> str:
    """Old diffusers' and OpenCLIP's names of a text encoder's layers as transformers has them."""
    name = re.sub(r"_self_attn_to_([qkv])$", r"_self_attn_\1_proj", name)
    name = re.sub(r"_self_attn_to_out_0$", "_self_attn_out_proj", name)
    if "transformer_resblocks_" in name:
        for own, original in OPEN_CLIP.items():
            name = name.replace(original.replace(".", "_"), own.replace(".", "_"))
        name = name.replace("_encoder_layers", "_text_model_encoder_layers")
    return name
