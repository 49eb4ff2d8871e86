"""Single-file checkpoints (the layout of the first Stable Diffusion release), SD1.x.

diffusers converts UNet and VAE; the family's configuration is in the package, so that only the
tokenizer's word list comes from the hub's cache.
"""

from pathlib import Path

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel

from ..errors import CheckpointError, SurroundingsError
from .base import MODELS, BaseModel, family_of
from .files import read_tensors

CONFIGS = MODELS / "configs" / "sd15"
TOKENIZER = "openai/clip-vit-large-patch14"
_TEXT_PREFIX = "cond_stage_model.transformer."


def load_single_file(path: Path, source: str, dtype: torch.dtype, *, xl: bool) -> BaseModel:
    """All parts of an SD1.x checkpoint."""
    if xl:
        raise CheckpointError(
            f"{source}: is a single-file SDXL checkpoint; convert it to a diffusers folder first"
        )
    from transformers.models.clip import CLIPTextConfig, CLIPTextModel

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
        tokenizers=[_tokenizer()],
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


def _tokenizer():  # type: ignore[no-untyped-def]
    from transformers.models.clip import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(TOKENIZER)
    except (OSError, ValueError) as error:
        raise SurroundingsError(
            f"{TOKENIZER}: the tokenizer of single-file checkpoints cannot be fetched; connect to "
            "the hub once, or use a diffusers folder"
        ) from error
