"""Single-file checkpoints of SD1.x, SD2.x and SDXL, in the layout of the first release.

diffusers' converters give its names; the families' configurations and CLIP's word pieces (OpenAI,
MIT licence) are in the package, so that a checkpoint opens without the hub. Only the parts that
are needed are read, and every tensor of them must find its place.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers.models.clip import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from ..errors import CheckpointError
from ..weights.files import TensorFile, is_safetensors, read_pickle, read_shapes, read_tensors
from . import families
from .base_model import BaseModel
from .diffusers_folder import placed, without_weights
from .families import EMA, FOLDERS, UNET, VAE, SingleFile, check_single_file, family_of
from .sd_names import unet_names

log = logging.getLogger(__name__)

_MARKS = ("v_pred", "ztsnr", "global_step")
"""Entries that say what the UNet predicts."""
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_BASE_512_STEP = 875000
"""`global_step` of SD2's 512-pixel base, whose UNet predicts the noise (as diffusers reads it)."""
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def load_single_file(
    path: Path, source: str, dtype: torch.dtype, *, own_vae: bool = True
) -> BaseModel:
    """All parts of a checkpoint; with `own_vae` off the VAE is one without weights, which only
    says the family's configuration."""
    kind = check_single_file(read_shapes(path), source, vae_given=not own_vae)
    text = read_tensors(path, only=("cond_stage_model.", "conditioner.", *_MARKS))
    encoders, tokenizers = _text_encoders(text.tensors, kind.family, source)
    unet = _unet(path, kind, source, dtype)
    vae_config = AutoencoderKL.load_config(_config(kind.family, "vae"))
    if own_vae:
        tensors = read_tensors(path, only=(VAE,)).tensors
        vae = _vae(tensors, vae_config, source, torch.float32)
    else:
        with torch.device("meta"):
            vae = AutoencoderKL.from_config(vae_config)
    return BaseModel(
        unet=unet,
        vae=vae,
        text_encoders=[encoder.eval().to(dtype) for encoder in encoders],
        tokenizers=tokenizers,
        scheduler_config=_BETAS | _prediction(path, text, kind, source),
        family=family_of(unet.config.block_out_channels, unet.config.cross_attention_dim),
        source=source,
    )


def load_single_vae(path: Path, dtype: torch.dtype, config: Mapping[str, Any]) -> AutoencoderKL:
    """A VAE file in the original layout (with its prefix or without) or of diffusers' keys.

    `config` is that of the base model's own VAE: SD's and SDXL's have the same tensors, and only
    it tells their scaling factors apart.
    """
    tensors = read_tensors(path).tensors
    if any(key.startswith(VAE) for key in tensors):
        tensors = {key: t for key, t in tensors.items() if key.startswith(VAE)}
    wanted = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", VAE)
    tensors = {key: t for key, t in tensors.items() if key.startswith(wanted)}
    return _vae(tensors, config, str(path), dtype)


def _config(family: str, part: str) -> Path:
    return families.CONFIGS / FOLDERS[family] / part


def _unet(path: Path, kind: SingleFile, source: str, dtype: torch.dtype) -> UNet2DConditionModel:
    """The ordinary weights, or the averaged ones where the file has no others."""
    with torch.device("meta"):
        config = UNet2DConditionModel.load_config(_config(kind.family, "unet"))
        unet = UNet2DConditionModel.from_config(config)
    tensors = read_tensors(path, only=(EMA if kind.averaged else UNET,)).tensors
    if kind.averaged:
        dotted = {EMA + name.replace(".", ""): UNET + name for name in unet_names(unet).values()}
        tensors = {dotted.get(key, UNET + key): tensor for key, tensor in tensors.items()}
    try:
        converted = convert_ldm_unet_checkpoint(tensors, unet.config)
    except KeyError as error:
        raise _lacking([str(error.args[0])], "UNet", source) from error
    tensors.clear()
    _fill(unet, converted, "UNet", source, dtype)
    return unet


def _vae(
    tensors: dict[str, Tensor], config: Mapping[str, Any], source: str, dtype: torch.dtype
) -> AutoencoderKL:
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(dict(config))
    if "decoder.mid_block.resnets.0.conv1.weight" in tensors:
        named = {_today(key): tensor for key, tensor in tensors.items()}
    else:
        named = convert_ldm_vae_checkpoint(tensors, vae.config)
    tensors.clear()
    _fill(vae, named, "VAE", source, dtype)
    return vae


def _today(key: str) -> str:
    """diffusers' own name for a VAE's tensor; before its version 0.18 attentions had others."""
    for old, new in _OLD_ATTENTION.items():
        key = key.replace(f".attentions.0.{old}.", f".attentions.0.{new}.")
    return key


def _fill(
    part: Any, tensors: dict[str, Tensor], name: str, source: str, dtype: torch.dtype
) -> None:
    """Give a part without weights its tensors: all of them, and no others. Empties `tensors`."""
    expected = {key: tuple(tensor.shape) for key, tensor in part.state_dict().items()}
    if missing := sorted(expected.keys() - tensors.keys()):
        raise _lacking(missing, name, source)
    wrong = sorted(k for k, t in tensors.items() if expected.get(k) != tuple(t.shape))
    if wrong:
        raise CheckpointError(
            f"{source}: {len(wrong)} tensors of its {name} are of another kind of model, first "
            f"{wrong[0]}; use a full checkpoint of SD1.x, SD2.x or SDXL"
        )
    found = {}
    while tensors:
        key, tensor = tensors.popitem()  # one by one, so that no second copy is kept
        if key in expected:
            found[key] = placed(tensor, part, dtype, source)
    part.load_state_dict(found, assign=True)


def _lacking(keys: list[str], name: str, source: str) -> CheckpointError:
    return CheckpointError(
        f"{source}: lacks {len(keys)} tensors of its {name}, first {keys[0]}; "
        "use a full checkpoint, or a diffusers folder"
    )


def _text_encoders(
    texts: dict[str, Tensor], family: str, source: str
) -> tuple[list[Any], list[CLIPTokenizer]]:
    """The text encoders of a family and their tokenizers. OpenCLIP's pad with "!", number 0.

    What becomes of `texts` is taken out of it.
    """
    if family == "SD2":
        return [_open_clip(CLIPTextModel, texts, "cond_stage_model.model.", "sd21/text_encoder",
                           source)], [clip_tokenizer(pad_token="!")]  # fmt: skip
    prefix = "conditioner.embedders.0" if family == "SDXL" else "cond_stage_model"
    encoder = without_weights(CLIPTextModel, _text_config("sd15/text_encoder"))
    named = {k.removeprefix(f"{prefix}.transformer."): texts.pop(k) for k in list(texts)
             if k.startswith(f"{prefix}.transformer.")}  # fmt: skip
    _fill_text(encoder, named, source)
    if family != "SDXL":
        return [encoder], [clip_tokenizer()]
    second = _open_clip(CLIPTextModelWithProjection, texts, "conditioner.embedders.1.model.",
                        "sdxl/text_encoder_2", source)  # fmt: skip
    return [encoder, second], [clip_tokenizer(), clip_tokenizer(pad_token="!")]


def _open_clip(kind: type, texts: dict[str, Tensor], prefix: str, config: str, source: str) -> Any:
    """A text encoder that is stored in OpenCLIP's layout."""
    encoder = without_weights(kind, _text_config(config))
    named = convert_open_clip_checkpoint(encoder, texts, prefix=prefix)
    for key in [key for key in texts if key.startswith(prefix)]:
        del texts[key]
    _fill_text(encoder, named, source)
    return encoder


def _text_config(place: str) -> CLIPTextConfig:
    return CLIPTextConfig.from_json_file(families.CONFIGS / place / "config.json")


def _fill_text(encoder: Any, tensors: dict[str, Tensor], source: str) -> None:
    """Load by name, whether or not the file or this version of transformers says `text_model.`,
    and whatever else the file has (position_ids, logit_scale). Empties `tensors`."""
    plain = {key.removeprefix("text_model."): tensors.pop(key) for key in list(tensors)}
    expected = {key: key.removeprefix("text_model.") for key in encoder.state_dict()}
    if missing := sorted(set(expected.values()) - plain.keys()):
        raise _lacking(missing, "text encoder", source)
    found = {key: placed(plain.pop(name), encoder, torch.float32, source)
             for key, name in expected.items()}  # fmt: skip
    try:
        encoder.load_state_dict(found, assign=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"{source}: its text encoder is of another kind of model; use a full checkpoint of "
            "SD1.x, SD2.x or SDXL"
        ) from error


def _prediction(path: Path, text: TensorFile, kind: SingleFile, source: str) -> dict[str, Any]:
    """What the UNet predicts, as a scheduler's settings: by marks, metadata or training step."""
    if "v_pred" in text.tensors:
        rescaled = {"rescale_betas_zero_snr": True} if "ztsnr" in text.tensors else {}
        return {"prediction_type": "v_prediction", **rescaled}
    noted = text.metadata.get("modelspec.prediction_type")
    if noted in ("v", "epsilon", "sample"):
        return {"prediction_type": "v_prediction" if noted == "v" else noted}
    if kind.family != "SD2":
        return {"prediction_type": "epsilon"}
    step: Any = text.tensors.get("global_step")
    if step is None and not is_safetensors(path):
        step = read_pickle(path).get("global_step")  # beside the tensors, outside their wrapper
    if not isinstance(step, int | Tensor):
        log.warning("%s: does not say what its UNet predicts, so v_prediction is assumed, as in "
                    "SD2's 768-pixel models; for its 512-pixel ones give --prediction-type "
                    "epsilon (prediction_type: in a prompt file)", source)  # fmt: skip
        return {"prediction_type": "v_prediction"}
    return {"prediction_type": "epsilon" if int(step) == _BASE_512_STEP else "v_prediction"}


def clip_tokenizer(pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """CLIP's word pieces, 49408 in all: bytes, bytes that end a word, merges, two marks."""
    file = families.CONFIGS / "sd15" / "tokenizer" / "merges.txt"
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
