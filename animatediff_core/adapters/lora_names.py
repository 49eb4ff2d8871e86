"""The layer that a LoRA's name means, in one spelling: `down_blocks_0_attentions_0_…_to_q`.

Text encoders' layers begin with `te1_` and `te2_`. Names of the original Stable Diffusion code
(`input_blocks_4_1_…`), which kohya's trainer uses for SDXL, become diffusers' ones; so do
diffusers' names of motion modules the official ones.
"""

import re

from ..checkpoints.motion_names import official_rest

_RESNET = {
    "in_layers_0": "norm1", "in_layers_2": "conv1", "emb_layers_1": "time_emb_proj",
    "out_layers_0": "norm2", "out_layers_3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip
_OUTER = {
    "time_embed_0": "time_embedding_linear_1", "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1", "label_emb_0_2": "add_embedding_linear_2",
    "input_blocks_0_0": "conv_in", "out_0": "conv_norm_out", "out_2": "conv_out",
}  # fmt: skip
_OPEN_CLIP = {
    "transformer_resblocks_": "text_model_encoder_layers_", "_mlp_c_fc": "_mlp_fc1",
    "_mlp_c_proj": "_mlp_fc2", "_attn_out_proj": "_self_attn_out_proj",
    "_ln_1": "_layer_norm1", "_ln_2": "_layer_norm2",
}  # fmt: skip
_BLOCK = re.compile(r"^(input|output)_blocks_(\d{1,3})_(\d)_(.+)$")
_MIDDLE = re.compile(r"^middle_block_([012])_(.+)$")
_DIFFUSERS_SITE = re.compile(
    r"^((?:down_blocks\.\d+|up_blocks\.\d+|mid_block)\.motion_modules\.\d+)(\.transformer_blocks\..+)$"
)


def plain_name(name: str) -> str:
    """One spelling for every dialect of a LoRA: prefixes told apart, dots as underscores."""
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
        for theirs, ours in _OPEN_CLIP.items():
            name = name.replace(theirs, ours)
    return name


def from_original(name: str, layers: int) -> str:
    """A UNet layer by the original code's name -> diffusers'; others stay as they are.

    `layers` are the ResNets of a down block, 2 in SD1.x, SD2 and SDXL: each block of the original
    counts them and the sampler after them.
    """
    if name in _OUTER:
        return _OUTER[name]
    if middle := _MIDDLE.match(name):
        place = ("resnets_0", "attentions_0", "resnets_1")[int(middle[1])]
        return f"mid_block_{place}_{_RESNET.get(middle[2], middle[2])}"
    found = _BLOCK.match(name)
    if found is None:
        return name
    number, part, rest = int(found[2]), int(found[3]), found[4]
    if found[1] == "input":
        block, layer = divmod(number - 1, layers + 1)
        if rest == "op":
            return f"down_blocks_{block}_downsamplers_0_conv"
        side = "down"
    else:
        block, layer = divmod(number, layers + 1)
        if part > 0 and rest == "conv":
            return f"up_blocks_{block}_upsamplers_0_conv"
        side = "up"
    if part == 0:
        return f"{side}_blocks_{block}_resnets_{layer}_{_RESNET.get(rest, rest)}"
    return f"{side}_blocks_{block}_attentions_{layer}_{rest}"
