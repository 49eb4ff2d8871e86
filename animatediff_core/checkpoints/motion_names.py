"""Names of a motion module's tensors, brought from every dialect to the official one.

Dialects: official (`….temporal_transformer.transformer_blocks.0.attention_blocks.0.to_q.weight`),
diffusers' (`….transformer_blocks.0.attn1.to_q.weight`, whose six renames are undone here) and
Hotshot-XL's (`….temporal_attentions.…`). A file of the official trainer has a `module.` before
every name and may hold the whole UNet; a diffusers pipeline has `unet.`.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

Dialect = Literal["official", "diffusers", "hotshot"]
Value = TypeVar("Value")

SITE = re.compile(r"^(down_blocks\.\d+|up_blocks\.\d+|mid_block)\.motion_modules\.(\d+)\.")
FROM_DIFFUSERS = (
    (".transformer_blocks.0.attn1.", ".transformer_blocks.0.attention_blocks.0."),
    (".transformer_blocks.0.attn2.", ".transformer_blocks.0.attention_blocks.1."),
    (".transformer_blocks.0.norm1.", ".transformer_blocks.0.norms.0."),
    (".transformer_blocks.0.norm2.", ".transformer_blocks.0.norms.1."),
    (".transformer_blocks.0.norm3.", ".transformer_blocks.0.ff_norm."),
)
_HOTSHOT = re.compile(r"\.temporal_attentions\.(\d+)\.")
_CONV_IN = ("conv_in.weight", "conv_in.bias")


def official_keys(tensors: Mapping[str, Value]) -> dict[str, Value]:
    """The motion tensors (or shapes) of a file by their official names, whatever else is in it.

    A SparseCtrl encoder has sites of its own but is no motion module: nothing of it is returned.
    """
    plain = {_bare(key): value for key, value in tensors.items()}
    if any(key.startswith("controlnet_") for key in plain):
        return {}
    found = {}
    for name, value in plain.items():
        name = _HOTSHOT.sub(r".motion_modules.\1.temporal_transformer.", name)
        name = name.replace(".pos_encoder.positional_encoding", ".pos_encoder.pe")
        official = site_name(name)
        if official is not None and "lora" not in name:
            found[official] = value
    if found:
        found |= _own_conv_in(plain)
    return found


def site_name(name: str) -> str | None:
    """The official name of a tensor at a site, from it or from diffusers'; None elsewhere."""
    match = SITE.match(name)
    if match is None:
        return None
    rest = name[match.end() :]
    if not rest.startswith("temporal_transformer."):
        rest = f"temporal_transformer{official_rest('.' + rest)}"
    return match.group(0) + rest


def official_rest(rest: str) -> str:
    """The official form of the rest of a name, after its site, from diffusers' dialect."""
    for name, official in FROM_DIFFUSERS:
        rest = rest.replace(name, official)
    return rest


def dialect_of(tensors: Mapping[str, object]) -> Dialect:
    """How the names of a file with motion tensors are spelled."""
    if any(_HOTSHOT.search(key) for key in tensors):
        return "hotshot"
    motion = [key for key in tensors if ".motion_modules." in key]
    return "official" if any(".temporal_transformer." in key for key in motion) else "diffusers"


def is_position(key: str) -> bool:
    """Whether an official name is that of stored frame positions."""
    return key.endswith((".pos_encoder.pe", ".pos_embed.pe"))


def _bare(key: str) -> str:
    return key.removeprefix("controlnet.").removeprefix("module.").removeprefix("unet.")


def _own_conv_in(plain: Mapping[str, Value]) -> dict[str, Value]:
    """PIA's first convolution, of latents, one mask and an image's latents: an odd count.

    A whole UNet's own one, of latents alone, is the base model's.
    """
    weight: Any = plain.get("conv_in.weight", ())
    shape: tuple[int, ...] = tuple(getattr(weight, "shape", weight))
    if len(shape) != 4 or shape[1] % 2 == 0:
        return {}
    return {key: plain[key] for key in _CONV_IN if key in plain}
