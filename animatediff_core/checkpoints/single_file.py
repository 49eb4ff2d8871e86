"""Single-file checkpoints: the layout of Stable Diffusion's first release, and SDXL's.

diffusers converts UNet and VAE; the families' configurations and CLIP's word pieces (OpenAI, MIT
licence) are in the package, so that a checkpoint opens without the hub.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers.models.clip import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from ..errors import CheckpointError
from .base import MODELS, BaseModel, family_of
from .files import read_tensors

CONFIGS = MODELS / "configs"
_FIRST_TEXT = "cond_stage_model.transformer."
_XL_TEXT = "conditioner.embedders.0.transformer."
_XL_TEXT_2 = "conditioner.embedders.1.model."


def load_single_file(path: Path, source: str, dtype: torch.dtype, *, xl: bool) -> BaseModel:
    """All parts of an SD1.x checkpoint, or with `xl` of an SDXL one."""
    configs = CONFIGS / ("sdxl" if xl else "sd15")
    unet = _converted(UNet2DConditionModel, path, configs / "unet", dtype)
    texts = read_tensors(path, only=("cond_stage_model.", "conditioner.")).tensors
    encoders: list[Any] = [_first_encoder(texts, _XL_TEXT if xl else _FIRST_TEXT, source)]
    tokenizers = [clip_tokenizer()]
    if xl:
        encoders.append(_second_encoder(texts, source))
        tokenizers.append(clip_tokenizer(pad_token="!"))
    return BaseModel(
        unet=unet,
        vae=_converted(AutoencoderKL, path, configs / "vae", torch.float32),
        text_encoders=[encoder.to(dtype) for encoder in encoders],
        tokenizers=tokenizers,
        scheduler_config={"prediction_type": "epsilon", "beta_start": 0.00085, "beta_end": 0.012,
                          "beta_schedule": "scaled_linear"},
        family=family_of(unet.config.block_out_channels, unet.config.cross_attention_dim),
        source=source,
    )  # fmt: skip


def load_single_vae(path: Path, dtype: torch.dtype) -> AutoencoderKL:
    """A VAE file of the same layout, or of diffusers' keys."""
    return _converted(AutoencoderKL, path, CONFIGS / "sd15" / "vae", dtype)


def _first_encoder(texts: Mapping[str, Tensor], prefix: str, source: str) -> CLIPTextModel:
    """SD1.x's text encoder, which is SDXL's first."""
    encoder = CLIPTextModel(_text_config("sd15", "text_encoder"))
    tensors = {k.removeprefix(prefix): t for k, t in texts.items() if k.startswith(prefix)}
    _fill(encoder, tensors, source)
    return encoder


def _second_encoder(texts: Mapping[str, Tensor], source: str) -> CLIPTextModelWithProjection:
    """SDXL's second text encoder, stored in OpenCLIP's layout."""
    encoder = CLIPTextModelWithProjection(_text_config("sdxl", "text_encoder_2"))
    _fill(encoder, convert_open_clip_checkpoint(encoder, texts, prefix=_XL_TEXT_2), source)
    return encoder


def _text_config(family: str, part: str) -> CLIPTextConfig:
    return CLIPTextConfig.from_json_file(CONFIGS / family / part / "config.json")


def _fill(encoder: Any, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load by name, whether or not this version of transformers says `text_model.`."""
    expected = encoder.state_dict().keys()
    if not any(key.startswith("text_model.") for key in expected):
        tensors = {key.removeprefix("text_model."): tensor for key, tensor in tensors.items()}
    missing = sorted(expected - tensors.keys())
    if missing:
        raise CheckpointError(
            f"{source}: lacks {len(missing)} tensors of its text encoder, first {missing[0]}; "
            "use a full checkpoint, or a diffusers folder"
        )
    encoder.load_state_dict({key: tensors[key] for key in expected})


def _converted(kind: type, path: Path, config: Path, dtype: torch.dtype):  # type: ignore[no-untyped-def]
    try:
        return kind.from_single_file(  # type: ignore[attr-defined]
            str(path), config=str(config), torch_dtype=dtype, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{path}: cannot be converted ({first}); is it a whole checkpoint?"
        ) from error


def clip_tokenizer(pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """CLIP's word pieces, 49408 in all: bytes, bytes that end a word, merges, two marks."""
    file = CONFIGS / "sd15" / "tokenizer" / "merges.txt"
    lines = file.read_text("utf-8").splitlines()
    merges = [(left, right) for left, right in (line.split(" ") for line in lines)]
    alphabet = _byte_characters()
    pieces = [*alphabet, *(c + "</w>" for c in alphabet), *(a + b for a, b in merges),
              "<|startoftext|>", "<|endoftext|>"]  # fmt: skip
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77, pad_token=pad_token)


def _byte_characters() -> list[str]:
    """The 256 bytes as visible characters, in CLIP's order (GPT-2's byte-level alphabet)."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return [*map(chr, visible), *(chr(256 + number) for number in range(len(hidden)))]
