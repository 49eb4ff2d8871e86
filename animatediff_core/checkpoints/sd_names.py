"""The layout of Stable Diffusion's first release, for writing: its names for diffusers' tensors.

One file holds UNet (`model.diffusion_model.`), VAE (`first_stage_model.`) and text: CLIP's names
for SD1.x, OpenCLIP's for SD2.x, one of each for SDXL. Reading goes through diffusers' converters
(single_file.py), which undo exactly this.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from .base_model import BaseModel
from .families import UNET, VAE

_OUTER = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v",
                  "to_out.0": "proj_out"}  # fmt: skip
_OPEN_CLIP = {
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final", "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj", "text_projection.weight": "text_projection",
}  # fmt: skip
_PLACE = re.compile(
    r"(?P<side>down|up)_blocks\.(?P<block>\d+)\."
    r"(?P<kind>resnets|attentions|downsamplers|upsamplers)\.(?P<layer>\d+)\.(?P<rest>.+)"
)


def single_file_tensors(base: BaseModel) -> dict[str, Tensor]:
    """All tensors of a base model by the names of a single-file checkpoint.

    Words of textual inversions stay out: the layout has no place for their spelling.
    """
    names = unet_names(base.unet)
    tensors = {UNET + names[key]: tensor for key, tensor in base.unet.state_dict().items()}
    tensors |= {VAE + name: tensor for name, tensor in _vae_items(base.vae)}
    prefixes = ["conditioner.embedders.0.", "conditioner.embedders.1."]
    if len(base.text_encoders) == 1:
        prefixes = ["cond_stage_model."]
    for prefix, encoder, tokenizer in zip(
        prefixes, base.text_encoders, base.tokenizers, strict=True
    ):
        for name, tensor in _text_items(encoder, tokenizer.vocab_size):
            tensors[prefix + name] = tensor
    return tensors


def unet_names(unet: UNet2DConditionModel) -> dict[str, str]:
    """diffusers' name -> the original one, without its prefix, for every tensor of a UNet."""
    keys = list(unet.state_dict())
    layers = int(unet.config.layers_per_block)
    attended = {key.split(".")[1] for key in keys if re.match(r"up_blocks\.\d+\.attentions", key)}
    return {key: _unet_name(key, layers, attended) for key in keys}


def _unet_name(key: str, layers: int, attended: Iterable[str]) -> str:
    for theirs, original in _OUTER.items():
        if key.startswith(f"{theirs}."):
            return key.replace(theirs, original, 1)
    if key.startswith("mid_block."):
        _, kind, number, rest = key.split(".", 3)
        layer = 1 if kind == "attentions" else 2 * int(number)
        return f"middle_block.{layer}.{_inner(kind, rest)}"
    match = _PLACE.fullmatch(key)
    assert match, key
    layer, kind = int(match["layer"]), match["kind"]
    first = int(match["block"]) * (layers + 1)
    if kind == "downsamplers":
        return f"input_blocks.{first + layers + 1}.0.{match['rest'].replace('conv', 'op', 1)}"
    if kind == "upsamplers":
        after = 2 if match["block"] in attended else 1
        return f"output_blocks.{first + layers}.{after}.{match['rest']}"
    place = f"output_blocks.{first + layer}"
    if match["side"] == "down":
        place = f"input_blocks.{first + layer + 1}"
    return f"{place}.{int(kind == 'attentions')}.{_inner(kind, match['rest'])}"


def _inner(kind: str, rest: str) -> str:
    """Within a ResNet or attention; attentions kept their names."""
    if kind == "attentions":
        return rest
    name, _, end = rest.partition(".")
    return f"{_RESNET[name]}.{end}"


def _vae_items(vae: AutoencoderKL) -> Iterator[tuple[str, Tensor]]:
    """Original names; the attention's matrices become 1 x 1 convolutions."""
    last = len(vae.config.block_out_channels) - 1
    for key, tensor in vae.state_dict().items():
        name = key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        if ".attentions.0." in name:
            start, rest = name.split("mid_block.attentions.0.")
            inner, _, end = rest.rpartition(".")
            name = f"{start}mid.attn_1.{_VAE_ATTENTION[inner]}.{end}"
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{last - int(m[1])}.block", name)
        name = re.sub(
            r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", name
        )
        yield name, tensor


def _text_items(encoder: Any, words: int) -> Iterator[tuple[str, Tensor]]:
    """A text encoder as its family stores it: OpenAI's CLIP (quick_gelu) or OpenCLIP (gelu)."""
    tensors = {key.removeprefix("text_model."): t for key, t in encoder.state_dict().items()}
    table = "embeddings.token_embedding.weight"
    tensors[table] = tensors[table][:words]
    if encoder.config.hidden_act == "quick_gelu":
        positions = torch.arange(encoder.config.max_position_embeddings).unsqueeze(0)
        yield "transformer.text_model.embeddings.position_ids", positions
        for key, tensor in tensors.items():
            yield f"transformer.text_model.{key}", tensor
        return
    for key, tensor in tensors.items():
        name = key
        for theirs, original in _OPEN_CLIP.items():
            name = name.replace(theirs, original)
        if ".self_attn.q_proj." in name:
            parts = [tensors[key.replace("q_proj", f"{one}_proj")] for one in "qkv"]
            yield f"model.{name.replace('self_attn.q_proj.', 'attn.in_proj_')}", torch.cat(parts)
        elif ".self_attn." not in name:
            yield f"model.{name}", tensor.T if name == "text_projection" else tensor
