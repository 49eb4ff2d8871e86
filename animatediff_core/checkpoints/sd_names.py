"""The layout of Stable Diffusion's first release: one table of names, for reading and writing.

One file holds UNet (`model.diffusion_model.`), VAE (`first_stage_model.`) and text: CLIP's names
for SD1.x, OpenCLIP's for SD2.x, one of each for SDXL.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from .base_model import BaseModel
from .families import UNET, VAE

GUIDANCE_EMBEDDING = "time_embedding.cond_proj"
"""LCM's layer that reads the guidance scale; diffusers' conversion leaves its name."""
_OUTER = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    GUIDANCE_EMBEDDING: GUIDANCE_EMBEDDING,
}  # fmt: skip
_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""diffusers' own names before its version 0.18, in VAEs."""
OPEN_CLIP = {
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final", "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj", "text_projection.weight": "text_projection",
}  # fmt: skip
_KEY = re.compile(
    r"(?P<side>down|up)_blocks\.(?P<block>\d+)\."
    r"(?P<kind>resnets|attentions|downsamplers|upsamplers)\.(?P<layer>\d+)\.(?P<rest>.+)"
)
_MIDDLE = re.compile(r"mid_block\.(?P<kind>resnets|attentions)\.(?P<layer>\d+)\.(?P<rest>.+)")


@dataclass(frozen=True)
class Original:
    """One tensor of the first release's layout, and the tensors that it is in diffusers'."""

    name: str
    """Without its part's prefix."""
    parts: tuple[str, ...]
    form: Literal["plain", "1 x 1", "transposed", "joined"] = "plain"
    """The difference: a matrix is a convolution there, transposed, or several one below the
    other."""

    def written(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The tensor for a file, from the model's own tensors."""
        first = tensors[self.parts[0]]
        if self.form == "joined":
            return torch.cat([tensors[part] for part in self.parts])
        if self.form == "1 x 1":
            return first[:, :, None, None]
        return first.T if self.form == "transposed" else first

    def read(self, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The model's own tensors by name, from a file's tensor."""
        if self.form == "1 x 1":
            tensor = tensor[:, :, 0, 0]
        elif self.form == "transposed":
            tensor = tensor.T.contiguous()
        chunks = tensor.chunk(len(self.parts)) if self.form == "joined" else [tensor]
        yield from zip(self.parts, chunks, strict=True)


def single_file_tensors(base: BaseModel) -> dict[str, Tensor]:
    """All tensors of a base model by the names of a single-file checkpoint.

    Words of textual inversions stay out: the layout has no room for their spelling.
    """
    tensors: dict[str, Tensor] = {}
    for prefix, part, entries in (
        (UNET, base.unet, unet_entries(base.unet)),
        (VAE, base.vae, vae_entries(base.vae)),
    ):
        state = part.state_dict()
        tensors |= {prefix + entry.name: entry.written(state) for entry in entries}
    for number, encoder in enumerate(base.text_encoders):
        prefix = text_prefix(number, len(base.text_encoders))
        state = encoder.state_dict()
        table = next(name for name in state if name.endswith("token_embedding.weight"))
        state[table] = state[table][: base.tokenizers[number].vocab_size]
        if encoder.config.hidden_act == "quick_gelu":
            positions = torch.arange(encoder.config.max_position_embeddings).unsqueeze(0)
            tensors[f"{prefix}transformer.text_model.embeddings.position_ids"] = positions
        tensors |= {prefix + entry.name: entry.written(state) for entry in text_entries(encoder)}
    return tensors


def text_prefix(number: int, count: int) -> str:
    """How the names of a text encoder begin: there is one, or SDXL's two."""
    return f"conditioner.embedders.{number}." if count > 1 else "cond_stage_model."


def unet_entries(unet: UNet2DConditionModel) -> list[Original]:
    """Every tensor of a UNet."""
    return [Original(name, (key,)) for key, name in unet_names(unet).items()]


def unet_names(unet: UNet2DConditionModel) -> dict[str, str]:
    """diffusers' name -> the original one, without its prefix, for every tensor of a UNet."""
    names = _unet_names(unet)
    assert len(names) == len(unet.state_dict())
    return names


def original_layers(unet: UNet2DConditionModel) -> dict[str, str]:
    """A UNet's layers, original name -> diffusers', with _ for dots as in LoRAs."""
    return {
        name.rpartition(".")[0].replace(".", "_"): key.rpartition(".")[0].replace(".", "_")
        for key, name in _unet_names(unet).items()
    }


def _unet_names(unet: UNet2DConditionModel) -> dict[str, str]:
    """For all tensors that the first release had."""
    keys = list(unet.state_dict())
    count = unet.config.layers_per_block
    layers = int(count if isinstance(count, int) else count[0])
    attended = {key.split(".")[1] for key in keys if re.match(r"up_blocks\.\d+\.attentions", key)}
    return {key: name for key in keys if (name := _unet_name(key, layers, attended)) is not None}


def _unet_name(key: str, layers: int, attended: Collection[str]) -> str | None:
    for own, original in _OUTER.items():
        if key.startswith(f"{own}."):
            return key.replace(own, original, 1)
    if match := _MIDDLE.fullmatch(key):
        layer = 1 if match["kind"] == "attentions" else 2 * int(match["layer"])
        return f"middle_block.{layer}.{_inner(match['kind'], match['rest'])}"
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    layer, kind = int(match["layer"]), match["kind"]
    first = int(match["block"]) * (layers + 1)
    if kind == "downsamplers":
        return f"input_blocks.{first + layers + 1}.0.{match['rest'].replace('conv', 'op', 1)}"
    if kind == "upsamplers":
        after = 2 if match["block"] in attended else 1
        return f"output_blocks.{first + layers}.{after}.{match['rest']}"
    block = f"output_blocks.{first + layer}"
    if match["side"] == "down":
        block = f"input_blocks.{first + layer + 1}"
    return f"{block}.{int(kind == 'attentions')}.{_inner(kind, match['rest'])}"


def _inner(kind: str, rest: str) -> str:
    """Within a ResNet or attention; attentions have the same names in both layouts."""
    if kind == "attentions":
        return rest
    name, _, end = rest.partition(".")
    return f"{_RESNET[name]}.{end}"


def vae_entries(vae: AutoencoderKL) -> list[Original]:
    """Every tensor of a VAE; its attention's matrices are 1 x 1 convolutions."""
    last = len(vae.config.block_out_channels) - 1
    entries = []
    for key, tensor in vae.state_dict().items():
        name = key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        matrix = False
        if ".attentions.0." in name:
            start, rest = name.split("mid_block.attentions.0.")
            inner, _, end = rest.rpartition(".")
            name = f"{start}mid.attn_1.{_VAE_ATTENTION[inner]}.{end}"
            matrix = tensor.ndim == 2
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{last - int(m[1])}.block", name)
        name = re.sub(
            r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", name
        )
        entries.append(Original(name, (key,), "1 x 1" if matrix else "plain"))
    return entries


def todays_name(key: str) -> str:
    """A tensor of a VAE by the name that its attention has in diffusers today."""
    for old, new in _OLD_ATTENTION.items():
        key = key.replace(f".attentions.0.{old}.", f".attentions.0.{new}.")
    return key


def text_entries(encoder: Any) -> list[Original]:
    """Every tensor of a text encoder: OpenAI's CLIP (quick_gelu) or OpenCLIP (gelu)."""
    entries = []
    for key in encoder.state_dict():
        name = key.removeprefix("text_model.")  # not in every version of transformers
        if encoder.config.hidden_act == "quick_gelu":
            entries.append(Original(f"transformer.text_model.{name}", (key,)))
            continue
        for own, original in OPEN_CLIP.items():
            name = name.replace(own, original)
        if ".self_attn.q_proj." in name:
            parts = tuple(key.replace("q_proj", f"{letter}_proj") for letter in "qkv")
            name = name.replace("self_attn.q_proj.", "attn.in_proj_")
            entries.append(Original(f"model.{name}", parts, "joined"))
        elif ".self_attn." not in name:
            transposed = name == "text_projection"
            entries.append(
                Original(f"model.{name}", (key,), "transposed" if transposed else "plain")
            )
    return entries
