"""Single-file checkpoints (the layout of the first Stable Diffusion release), SD1.x.

diffusers converts UNet and VAE; the family's configuration and CLIP's word pieces (OpenAI, MIT
licence) are in the package, so that a checkpoint opens without the hub.
"""

from pathlib import Path

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from transformers.models.clip import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..errors import CheckpointError
from .base import MODELS, BaseModel, family_of
from .files import read_tensors

CONFIGS = MODELS / "configs" / "sd15"
_TEXT_PREFIX = "cond_stage_model.transformer."


def load_single_file(path: Path, source: str, dtype: torch.dtype, *, xl: bool) -> BaseModel:
    """All parts of an SD1.x checkpoint."""
    if xl:
        raise CheckpointError(
            f"{source}: is a single-file SDXL checkpoint; convert it to a diffusers folder first"
        )
    unet = _converted(UNet2DConditionModel, path, CONFIGS / "unet", dtype)
    text = {
        key.removeprefix(_TEXT_PREFIX): tensor
        for key, tensor in read_tensors(path).tensors.items()
        if key.startswith(_TEXT_PREFIX)
    }
    encoder = CLIPTextModel(CLIPTextConfig.from_json_file(CONFIGS / "text_encoder" / "config.json"))
    expected = encoder.state_dict().keys()
    if not any(key.startswith("text_model.") for key in expected):
        text = {key.removeprefix("text_model."): tensor for key, tensor in text.items()}
    text = {key: tensor for key, tensor in text.items() if not key.endswith("position_ids")}
    missing = sorted(expected - text.keys())
    if missing:
        raise CheckpointError(
            f"{source}: lacks {len(missing)} tensors of its text encoder, first {missing[0]}; "
            "use a full checkpoint, or a diffusers folder"
        )
    encoder.load_state_dict(text)
    return BaseModel(
        unet=unet,
        vae=_converted(AutoencoderKL, path, CONFIGS / "vae", torch.float32),
        text_encoders=[encoder.to(dtype)],
        tokenizers=[clip_tokenizer()],
        scheduler_config={"prediction_type": "epsilon", "beta_start": 0.00085, "beta_end": 0.012,
                          "beta_schedule": "scaled_linear"},
        family=family_of(unet.config.block_out_channels, unet.config.cross_attention_dim),
        source=source,
    )  # fmt: skip


def load_single_vae(path: Path, dtype: torch.dtype) -> AutoencoderKL:
    """A VAE file of the same layout, or of diffusers' keys."""
    return _converted(AutoencoderKL, path, CONFIGS / "vae", dtype)


def _converted(kind: type, path: Path, config: Path, dtype: torch.dtype):  # type: ignore[no-untyped-def]
    try:
        return kind.from_single_file(  # type: ignore[attr-defined]
            str(path), config=str(config), torch_dtype=dtype, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{path}: cannot be converted ({first}); is it an SD1.x checkpoint?"
        ) from error


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's word pieces, 49408 in all: bytes, bytes that end a word, merges, two marks."""
    lines = (CONFIGS / "tokenizer" / "merges.txt").read_text("utf-8").splitlines()
    merges = [(left, right) for left, right in (line.split(" ") for line in lines)]
    alphabet = _byte_characters()
    pieces = [*alphabet, *(c + "</w>" for c in alphabet), *(a + b for a, b in merges),
              "<|startoftext|>", "<|endoftext|>"]  # fmt: skip
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def _byte_characters() -> list[str]:
    """The 256 bytes as visible characters, in CLIP's order (GPT-2's byte-level alphabet)."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return [*map(chr, visible), *(chr(256 + number) for number in range(len(hidden)))]
