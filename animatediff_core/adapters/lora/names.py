"""The layer that a LoRA's name means, in one spelling: `down_blocks_0_attentions_0_…_to_q`.

Text encoders' layers begin with `te1_` and `te2_`. Names of the original Stable Diffusion code
(`input_blocks_4_1_…`), which kohya's trainer uses for SDXL, become diffusers' ones; so do
diffusers' names of motion modules the official ones.
"""

import re

from ...checkpoints.motion_names import official_rest
from ...checkpoints.sd_names import OPEN_CLIP

_DIFFUSERS_SITE = re.compile(
    r"^((?:down_blocks\.\d+|up_blocks\.\d+|mid_block)\.motion_modules\.\d+)(\.transformer_blocks\..+)$"
)


def plain_name(name: str) -> str:
    """One spelling for every dialect of a LoRA: one prefix a model, dots as underscores."""
    name = name.removeprefix("module.").removeprefix("base_model.model.")
    name = re.sub(r"^((lora|lycoris)_unet_|unet\.|(model\.)?diffusion_model\.)", "", name)
    name = re.sub(r"^lycoris_(?=(down|mid|up|input|middle|output)_block)", "", name)
    if site := _DIFFUSERS_SITE.match(name):
        name = f"{site[1]}.temporal_transformer{official_rest(site[2] + '.')[:-1]}"
    name = re.sub(r"^((lora|lycoris)_te1?_|text_encoder\.)|^(?=text_model\.)", "te1_", name)
    name = re.sub(r"^((lora|lycoris)_te2_|text_encoder_2\.)", "te2_", name)
    name = re.sub(r"[._]to_out$", "_to_out_0", name).replace(".", "_")
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
