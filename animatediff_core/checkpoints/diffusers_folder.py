"""The parts of a diffusers folder, opened.

A folder is data: its configurations are read here, checked against the weights, and given to the
classes that a Stable Diffusion model has. Whatever else they name (other classes, code, kernels) is
refused or not looked at.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers.models.clip import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from ..errors import CheckpointError
from ..weights.files import printable, read_config_json, refused_json
from ..weights.folder import base_layout, local_names, shards, vae_layout
from ..weights.match import check_tensors, shapes_of
from ..weights.weight_file import open_weights
from .base_model import BaseModel
from .empty_model import emptied, fill, without_weights
from .families import family_of
from .sd_names import todays_name

_TEXT_SETTINGS = (
    "vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers",
    "num_attention_heads", "max_position_embeddings", "hidden_act", "layer_norm_eps",
    "pad_token_id", "bos_token_id", "eos_token_id",
)  # fmt: skip
"""The others either serve training or choose code."""
_SIZES = (
    "attention_head_dim", "num_attention_heads", "norm_num_groups", "cross_attention_dim",
    "in_channels", "out_channels", "latent_channels", "vocab_size", "hidden_size",
    "intermediate_size", "num_hidden_layers", "max_position_embeddings", "projection_dim",
)  # fmt: skip
"""Settings that are sizes, or lists of sizes, if they are there."""
_MOST = 1 << 20
"""No size in a configuration of such a model comes near it."""
_MOST_BLOCKS = 1000
"""Levels x layers x transformer blocks, or layers of a text encoder; SDXL has 60 and 32."""
_MAX_TOKENIZER = 16 << 20
_SCHEDULE = {
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
}
"""diffusers' own defaults."""
_PREDICTIONS = ("epsilon", "v_prediction", "sample")
_CLASSES: dict[str, type] = {
    "unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}  # fmt: skip


def load_folder(
    folder: Path, source: str, variant: str | None, dtype: torch.dtype | None
) -> BaseModel:
    """A base model from its folder; the VAE in fp32.

    Raises CheckpointError if a part is damaged or its configuration does not fit its weights.
    """
    layout = base_layout(local_names(folder), variant, source)
    if (folder / "model_index.json").is_file():
        read_config_json(folder / "model_index.json")
    parts: dict[str, Any] = {}
    for part, weights in layout.weights.items():
        files = shards(folder / part, weights)
        kind = torch.float32 if part == "vae" else dtype
        parts[part] = open_part(_CLASSES[part], folder / part, files, kind)
    encoders = [part for part in parts if part.startswith("text_encoder")]
    unet = parts["unet"]
    return BaseModel(
        unet=unet,
        vae=parts["vae"],
        text_encoders=[parts[part] for part in encoders],
        tokenizers=[_tokenizer(folder / n.replace("text_encoder", "tokenizer")) for n in encoders],
        scheduler_config=_schedule(folder / "scheduler" / "scheduler_config.json"),
        family=family_of(unet.config.block_out_channels, unet.config.cross_attention_dim),
        source=source,
        folder=folder,
    )


def open_vae(folder: Path) -> AutoencoderKL:
    """A VAE's own folder, in fp32."""
    layout = vae_layout(local_names(folder), str(folder))
    files = shards(folder, layout.weights["vae"])
    vae: AutoencoderKL = open_part(AutoencoderKL, folder, files, torch.float32)
    return vae


def open_part(kind: Any, folder: Path, files: Sequence[Path], dtype: torch.dtype | None) -> Any:
    """One model of a folder, its configuration checked against the shapes of its weights."""
    if issubclass(kind, ConfigMixin):
        return open_checked(kind, _settings(folder, kind), folder, files, dtype)
    return open_checked(kind, _text_config(folder, _shapes_of(files)), folder, files, dtype)


def open_checked(
    kind: Any, config: Any, folder: Path, files: Sequence[Path], dtype: torch.dtype | None
) -> Any:
    """A model of a configuration that is known to be sane: diffusers' as a mapping, transformers'
    as its own class; its weights must be the ones that it describes."""
    try:
        model = without_weights(kind.from_config if isinstance(config, Mapping) else kind, config)
    except (ValueError, LookupError) as error:  # sizes that do not go together, unknown kinds
        first = printable(str(error).strip().partition("\n")[0])
        raise CheckpointError(f"{folder}: cannot be opened ({first}); download it again") from error
    names = {_plain(name): name for name in model.state_dict()}
    expected = {_plain(name): shape for name, shape in shapes_of(model).items()}
    found = {_plain(name): shape for name, shape in _shapes_of(files).items()}
    part = f"{kind.__name__} that its config.json describes"
    advice = "take both from the same model"
    check_tensors(expected, found, folder, part, advice, others_allowed=True)
    fill(model, _tensors_of(files, names), dtype, folder)
    return model.eval()


def _tensors_of(files: Sequence[Path], names: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a model, file by file; whatever else the files hold is left."""
    for file in files:
        for name, tensor in emptied(open_weights(file).tensors()):
            if (own := names.get(_plain(name))) is not None:
                yield own, tensor


def _shapes_of(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    return {name: shape for file in files for name, shape in open_weights(file).shapes.items()}


def _plain(name: str) -> str:
    """A name without what versions of the libraries write differently."""
    return todays_name(name.removeprefix("text_model."))


def _settings(folder: Path, kind: type) -> dict[str, Any]:
    """A UNet's, ControlNet's or VAE's config.json, of the right class and of a sane size."""
    path = folder / "config.json"
    config = read_config_json(path)
    name = config.get("_class_name", kind.__name__)
    if name != kind.__name__:
        raise refused_json(path, f"is for a {printable(name)}, not for a {kind.__name__}")
    if "quantization_config" in config:
        raise CheckpointError(f"{path}: is of a quantised model; use its fp32 or fp16 weights")
    check_sizes(config, path)
    blocks = len(numbers(config, "block_out_channels", path))
    for key in ("layers_per_block", "transformer_layers_per_block"):
        blocks *= max(numbers(config, key, path)) if key in config else 1
    if blocks > _MOST_BLOCKS:
        raise refused_json(path, f"describes {blocks} blocks, more than any such model has")
    return config


def check_sizes(config: Mapping[str, Any], path: Path) -> None:
    """Every setting that is a size is one, or a list of them; raises CheckpointError."""
    for key in _SIZES:
        if config.get(key) is not None:
            numbers(config, key, path)


def numbers(config: Mapping[str, Any], key: str, path: Path) -> list[int]:
    """A size, or a list of sizes, all of them whole and of a sane magnitude."""
    waiting, found = [config.get(key)], []
    while waiting:
        value = waiting.pop(0)
        if isinstance(value, list) and 0 < len(value) + len(waiting) <= 64:
            waiting = value + waiting
        elif isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MOST:
            found.append(value)
        else:
            shown = printable(value)
            raise refused_json(path, f"has {key} {shown} where a sane size or a list is needed")
    return found


def _text_config(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> CLIPTextConfig:
    """A text encoder's settings; those that could choose code are left out."""
    path = folder / "config.json"
    config = read_config_json(path)
    if (kind := config.get("model_type", "clip_text_model")) not in ("clip_text_model", "clip"):
        raise refused_json(path, f"is for a {printable(kind)}, not for CLIP's text model")
    check_sizes(config, path)
    if config.get("num_hidden_layers", 1) > min(_MOST_BLOCKS, len(shapes)):
        raise refused_json(path, "describes more layers than its weights have")
    try:
        return CLIPTextConfig(**{key: config[key] for key in _TEXT_SETTINGS if key in config})
    except (StrictDataclassError, ValueError) as error:
        raise refused_json(path, "has settings that CLIP's text model does not have") from error


def _tokenizer(folder: Path) -> CLIPTokenizer:
    for file in folder.glob("*"):
        if file.is_file() and file.stat().st_size > _MAX_TOKENIZER:
            raise CheckpointError(f"{file}: is too large for a tokenizer; download it again")
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        if type(error) is not Exception and not isinstance(error, OSError | ValueError):
            raise  # the tokenizers library raises bare Exceptions for what it cannot read
        first = printable(str(error).strip().partition("\n")[0])
        raise CheckpointError(f"{folder}: cannot be opened ({first}); download it again") from error


def _schedule(path: Path) -> dict[str, Any]:
    """The scheduler's settings, of which betas and prediction_type are used."""
    config = {**_SCHEDULE, **read_config_json(path)}
    if config["prediction_type"] not in _PREDICTIONS:
        kind = printable(config["prediction_type"])
        raise refused_json(path, f"has prediction_type {kind}; {', '.join(_PREDICTIONS)} are known")
    for key in ("beta_start", "beta_end"):
        if not (isinstance(config[key], int | float) and 0 < config[key] < 1):
            raise refused_json(path, f"has {key} {printable(config[key])}, which is no noise")
    return config
