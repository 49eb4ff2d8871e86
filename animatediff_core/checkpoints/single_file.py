"""Single-file checkpoints of SD1.x, SD2.x and SDXL, in the layout of the first release.

The families' configurations and CLIP's word pieces (OpenAI, MIT licence) are in the package, so
that a checkpoint opens without the hub. Only the parts that are needed are read.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers.models.clip import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from ..errors import CheckpointError
from ..weights.match import check_tensors
from ..weights.safetensors_file import headers_only
from ..weights.weight_file import WeightFile, open_model, open_weights
from . import families
from .base_model import BaseModel
from .empty_model import fill, without_weights
from .families import (
    EMA,
    FOLDERS,
    UNET,
    VAE,
    SingleFile,
    UNetLayout,
    check_single_file,
    count_temporal,
    unet_layout,
)
from .sd_names import (
    GUIDANCE_EMBEDDING,
    Original,
    text_entries,
    text_prefix,
    todays_name,
    unet_entries,
    vae_entries,
)

log = logging.getLogger(__name__)

_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_BASE_512_STEP = 875000
"""`global_step` of SD2's 512-pixel base, whose UNet predicts the noise (as diffusers reads it)."""
_ADVICE = "use a full checkpoint of SD1.x, SD2.x or SDXL, or a diffusers folder"
_TEXT_ENCODERS: dict[str, tuple[tuple[type, str], ...]] = {
    "SD1.5": ((CLIPTextModel, "sd15/text_encoder"),),
    "SD2": ((CLIPTextModel, "sd21/text_encoder"),),
    "SDXL": (
        (CLIPTextModel, "sd15/text_encoder"),
        (CLIPTextModelWithProjection, "sdxl/text_encoder_2"),
    ),
}
"""By family, the class and configuration of each."""


def family_model(family: str, source: str) -> BaseModel:
    """The structure of a family in the package, without weights."""
    unet = UNet2DConditionModel.load_config(_config(family, "unet"))
    vae = AutoencoderKL.load_config(_config(family, "vae"))
    encoders = [
        without_weights(
            kind, CLIPTextConfig.from_json_file(families.CONFIGS / place / "config.json")
        )
        for kind, place in _TEXT_ENCODERS[family]
    ]
    return BaseModel(
        unet=without_weights(UNet2DConditionModel.from_config, unet),
        vae=without_weights(AutoencoderKL.from_config, vae),
        text_encoders=[encoder.eval() for encoder in encoders],
        tokenizers=[
            clip_tokenizer() if encoder.config.hidden_act == "quick_gelu" else clip_tokenizer("!")
            for encoder in encoders
        ],
        scheduler_config=dict(_BETAS),
        family=family,
        source=source,
    )


def load_single_file(
    path: Path, source: str, dtype: torch.dtype | None, *, own_vae: bool = True
) -> BaseModel:
    """All parts of a checkpoint; with `own_vae` off the VAE is one without weights, which only
    says the family's configuration."""
    file = open_weights(path)
    kind = check_single_file(file.shapes, source, vae_given=not own_vae)
    if (count := count_temporal(file.shapes)) and not headers_only():
        message = (
            "%s: holds %d tensors of a motion module, which are left out; name the module itself "
            "with --motion (motion: in a prompt file)"
        )
        log.warning(message, source, count)
    base = family_model(kind.family, source)
    base.scheduler_config |= _prediction(file, kind, source)
    layout = UNetLayout(EMA if kind.averaged else UNET, "input_blocks.0.0.weight")
    base.unet = _unet(file, layout, base.unet.config, source, dtype)
    for number, encoder in enumerate(base.text_encoders):  # files have more: position_ids, …
        prefix, spelled = text_prefix(number, len(base.text_encoders)), _without_text_model
        entries = text_entries(encoder)
        _fill(encoder, entries, prefix, "text encoder", file, source, dtype, spelled=spelled)
    if own_vae:
        _fill(base.vae, vae_entries(base.vae), VAE, "VAE", file, source, torch.float32)
    return base


def load_single_vae(
    path: Path, dtype: torch.dtype | None, config: Mapping[str, Any]
) -> AutoencoderKL:
    """A VAE file in the original layout (with its prefix or without) or of diffusers' keys.

    `config` is that of the base model's own VAE: SD's and SDXL's have the same tensors, and only
    it tells their scaling factors apart.
    """
    file = open_weights(path)
    vae: AutoencoderKL = without_weights(AutoencoderKL.from_config, dict(config))
    entries, prefix = vae_entries(vae), ""
    if any(name.startswith(VAE) for name in file.shapes):
        prefix = VAE
    elif "decoder.mid_block.resnets.0.conv1.weight" in file.shapes:
        entries = [Original(name, (name,)) for name in vae.state_dict()]
    _fill(vae, entries, prefix, "VAE", file, str(path), dtype, spelled=todays_name)
    return vae


def load_single_unet(
    path: Path, config: Mapping[str, Any], dtype: torch.dtype | None
) -> UNet2DConditionModel:
    """A UNet alone, in the first release's names or diffusers', from a file or its folder.

    `config` is that of the base model's own UNet.
    """
    file = open_model(path)
    layout = unet_layout(file.shapes)
    if layout is None:
        raise CheckpointError(f"{path}: is no UNet; `animatediff inspect` says what it is")
    return _unet(file, layout, config, str(path), dtype)


def _config(family: str, part: str) -> Path:
    return families.CONFIGS / FOLDERS[family] / part


def _unet(
    file: WeightFile,
    layout: UNetLayout,
    config: Mapping[str, Any],
    source: str,
    dtype: torch.dtype | None,
) -> UNet2DConditionModel:
    """A UNet's weights; those of LCM have an embedding of the guidance scale besides."""
    embedding = file.shapes.get(f"{layout.prefix}{GUIDANCE_EMBEDDING}.weight", (0, None))
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    settings["time_cond_proj_dim"] = embedding[-1]
    unet: UNet2DConditionModel = without_weights(UNet2DConditionModel.from_config, settings)
    entries = unet_entries(unet)
    if not layout.original:
        entries = [Original(name, (name,)) for name in unet.state_dict()]
    spelled = _without_dots if layout.prefix == EMA else str
    _fill(unet, entries, layout.prefix, "UNet", file, source, dtype, spelled=spelled)
    return unet


def _without_dots(name: str) -> str:
    """How averaged weights are named."""
    return name.replace(".", "")


def _without_text_model(name: str) -> str:
    """Some files leave this out of a text encoder's names."""
    return name.replace(".text_model.", ".")


def _fill(
    model: nn.Module,
    entries: Sequence[Original],
    prefix: str,
    part: str,
    file: WeightFile,
    source: str,
    dtype: torch.dtype | None,
    *,
    spelled: Callable[[str], str] = str,
) -> None:
    """Give a model without weights the tensors of a prefix; `spelled` gives names one spelling.

    Others under the prefix are not used.
    """
    state = model.state_dict()
    wanted = {spelled(prefix + entry.name): entry for entry in entries}
    expected = {name: tuple(entry.written(state).shape) for name, entry in wanted.items()}
    names = {spelled(name): name for name in file.shapes if name.startswith(prefix)}
    found = {name: file.shapes[own] for name, own in names.items()}
    check_tensors(expected, found, source, part, _ADVICE, others_allowed=True)
    tensors = {spelled(name): tensor for name, tensor in file.tensors(prefix).items()}
    items = (item for name, entry in wanted.items() for item in entry.read(tensors.pop(name)))
    fill(model, items, dtype, source)


def _prediction(file: WeightFile, kind: SingleFile, source: str) -> dict[str, Any]:
    """The UNet's prediction, as a scheduler's settings: by marks, metadata or training step."""
    if "v_pred" in file.shapes:
        rescaled = {"rescale_betas_zero_snr": True} if "ztsnr" in file.shapes else {}
        return {"prediction_type": "v_prediction", **rescaled}
    noted = file.metadata.get("modelspec.prediction_type")
    if noted in ("v", "epsilon", "sample"):
        return {"prediction_type": "v_prediction" if noted == "v" else noted}
    if kind.family != "SD2" or headers_only():
        return {"prediction_type": "epsilon"}
    step = file.metadata.get("global_step")
    if step is None and "global_step" in file.shapes:
        step = str(int(file.tensors("global_step")["global_step"]))
    if step is None:
        log.warning(
            "%s: does not say what its UNet predicts, so v_prediction is assumed, as in "
            "SD2's 768-pixel models; for its 512-pixel ones give --prediction-type "
            "epsilon (prediction_type: in a prompt file)",
            source,
        )
        return {"prediction_type": "v_prediction"}
    return {"prediction_type": "epsilon" if step == str(_BASE_512_STEP) else "v_prediction"}


def clip_tokenizer(pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """CLIP's word pieces, 49408 in all: bytes, bytes that end a word, merges, two marks."""
    file = families.CONFIGS / "sd15" / "tokenizer" / "merges.txt"
    lines = file.read_text("utf-8").splitlines()
    merges = [(left, right) for left, right in (line.split(" ") for line in lines)]
    alphabet = _byte_characters()
    pieces = [
        *alphabet,
        *(c + "</w>" for c in alphabet),
        *(a + b for a, b in merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77, pad_token=pad_token)


def _byte_characters() -> list[str]:
    """The 256 bytes as visible characters, in CLIP's order (GPT-2's byte-level alphabet)."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return [*map(chr, visible), *(chr(256 + number) for number in range(len(hidden)))]
