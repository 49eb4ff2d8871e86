"""The parts of a diffusers folder, opened.

A folder is data: its configurations are read here, checked against the weights, and given to the
classes that a Stable Diffusion model has. Whatever else they name (other classes, code, kernels) is
refused or not looked at.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers.models.clip import (
    CLIPPreTrainedModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from ..errors import CheckpointError
from ..weights.files import printable, read_config_json, read_shapes, read_tensors, refused_json
from ..weights.folder import Weights, base_layout, local_names, vae_layout
from ..weights.pickles import MALFORMED

Shapes = Mapping[str, tuple[int, ...]]
_TEXT_SETTINGS = (
    "vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers",
    "num_attention_heads", "max_position_embeddings", "hidden_act", "layer_norm_eps",
    "pad_token_id", "bos_token_id", "eos_token_id",
)  # fmt: skip
"""The others either serve training or choose code."""
_MOST = 1 << 20
"""No size in a configuration of such a model comes near it."""
_MOST_BLOCKS = 1000
"""Levels x layers x transformer blocks, or layers of a text encoder; SDXL has 60 and 32."""
_MAX_INDEX = 16 << 20
_MAX_TOKENIZER = 16 << 20
_SCHEDULE = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear",
             "prediction_type": "epsilon"}  # fmt: skip
"""diffusers' own defaults."""
_PREDICTIONS = ("epsilon", "v_prediction", "sample")
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def folder_shape(
    folder: Path, source: str, variant: str | None
) -> tuple[tuple[int, ...], int, int]:
    """Levels and text width of the UNet, pixels for one latent of the VAE; weights are chosen.

    Only configurations are read. Raises CheckpointError where a part is missing or senseless.
    """
    base_layout(local_names(folder), variant, source)
    unet = _settings(folder / "unet", UNet2DConditionModel)
    vae = _settings(folder / "vae", AutoencoderKL)
    where = folder / "unet" / "config.json"
    levels = numbers(unet, "block_out_channels", where)
    width = max(numbers(unet, "cross_attention_dim", where))
    steps = len(numbers(vae, "block_out_channels", folder / "vae" / "config.json")) - 1
    return tuple(levels), width, 2**steps


def open_parts(
    folder: Path, source: str, variant: str | None, dtype: torch.dtype
) -> dict[str, Any]:
    """Every part of a base model's folder by name; the VAE in fp32.

    Raises CheckpointError where a part is damaged or its configuration does not fit its weights.
    """
    layout = base_layout(local_names(folder), variant, source)
    if (folder / "model_index.json").is_file():
        read_config_json(folder / "model_index.json")
    kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel,
             "text_encoder_2": CLIPTextModelWithProjection}  # fmt: skip
    parts: dict[str, Any] = {}
    for part, weights in layout.weights.items():
        kind = torch.float32 if part == "vae" else dtype
        parts[part] = open_part(kinds[part], folder / part, weights, kind)
        if part.startswith("text_encoder"):
            name = part.replace("text_encoder", "tokenizer")
            parts[name] = _tokenizer(folder / name)
    parts["scheduler"] = _schedule(folder / "scheduler" / "scheduler_config.json")
    return parts


def open_vae(folder: Path) -> AutoencoderKL:
    """A VAE's own folder, in fp32."""
    layout = vae_layout(local_names(folder), str(folder))
    vae: AutoencoderKL = open_part(AutoencoderKL, folder, layout.weights["vae"], torch.float32)
    return vae


def open_part(kind: Any, folder: Path, weights: Weights, dtype: torch.dtype) -> Any:
    """One model of a folder, its configuration checked against the shapes of its weights."""
    if issubclass(kind, ConfigMixin):
        return open_checked(kind, _settings(folder, kind), folder, weights, dtype)
    config = _text_config(folder, _shapes_of(folder, weights))
    return open_checked(kind, config, folder, weights, dtype)


def open_checked(kind: Any, config: Any, folder: Path, weights: Weights, dtype: torch.dtype) -> Any:
    """A model of a configuration that is known to be sane: diffusers' as a mapping, transformers'
    as its own class; its weights must be the ones that it describes."""
    shapes = _shapes_of(folder, weights)
    build = kind.from_config if isinstance(config, Mapping) else kind
    try:
        model = without_weights(build, config)
        _check_fits(model, shapes, folder)
        _fill(model, folder, weights, dtype)
    except MALFORMED as error:
        first = printable(str(error).strip().partition("\n")[0])
        raise CheckpointError(f"{folder}: cannot be opened ({first}); download it again") from error
    return model.eval()


def without_weights(build: Callable[[Any], Any], config: Any) -> Any:
    """A model whose weights take no memory and no time."""
    with torch.device("meta"):
        model = build(config)
    for part in model.modules():
        if (unset := part._buffers.get("position_ids")) is not None:  # CLIP's, in no file
            part.position_ids = torch.arange(unset.shape[-1]).expand(1, -1)
    return model


def _fill(model: torch.nn.Module, folder: Path, weights: Weights, dtype: torch.dtype) -> None:
    """Give a model its weights, file by file; whatever else the files hold is left."""
    names = {_plain(key): key for key in model.state_dict()}
    found: dict[str, Tensor] = {}
    for file in (name for name in weights.files if not name.endswith(".json")):
        tensors = read_tensors(folder / file).tensors
        for key in list(tensors):
            tensor = tensors.pop(key)  # one by one, so that no second copy is kept
            if (own := names.get(_plain(key))) is not None:
                found[own] = placed(tensor, model, dtype, folder)
    model.load_state_dict(found, assign=True)


def placed(
    tensor: Tensor, model: torch.nn.Module, dtype: torch.dtype, source: str | Path
) -> Tensor:
    """A weight as a model keeps it.

    Those of CLIP are copied out of the file: they are not packed, and the matrix kernels round by
    how their memory is aligned, which differs from file to file.
    """
    if not tensor.is_floating_point():
        raise CheckpointError(f"{source}: is of a quantised model; use its fp32 or fp16 weights")
    return tensor.to(dtype, copy=isinstance(model, CLIPPreTrainedModel))


def _shapes_of(folder: Path, weights: Weights) -> Shapes:
    shapes: dict[str, tuple[int, ...]] = {}
    for name in weights.files:
        if name.endswith(".json"):
            _check_index(folder / name, weights.files)
        else:
            shapes |= read_shapes(folder / name)
    return shapes


def _settings(folder: Path, kind: type) -> dict[str, Any]:
    """A UNet's, ControlNet's or VAE's config.json, of the right class and of a sane size."""
    path = folder / "config.json"
    config = read_config_json(path)
    said = config.get("_class_name", kind.__name__)
    if said != kind.__name__:
        raise refused_json(path, f"is for a {printable(said)}, not for a {kind.__name__}")
    if "quantization_config" in config:
        raise CheckpointError(f"{path}: is of a quantised model; use its fp32 or fp16 weights")
    levels = numbers(config, "block_out_channels", path)
    blocks = len(levels)
    for key in ("layers_per_block", "transformer_layers_per_block"):
        blocks *= max(numbers(config, key, path)) if key in config else 1
    if blocks > _MOST_BLOCKS:
        raise refused_json(path, f"describes {blocks} blocks, more than any such model has")
    return config


def numbers(config: Mapping[str, Any], key: str, path: Path) -> list[int]:
    """A size, or a list of sizes, all of them whole and of a sane magnitude."""
    waiting, found = [config.get(key)], []
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, list) and 0 < len(one) + len(waiting) <= 64:
            waiting = one + waiting
        elif isinstance(one, int) and not isinstance(one, bool) and 0 < one <= _MOST:
            found.append(one)
        else:
            said = printable(one)
            raise refused_json(path, f"has {key} {said} where a sane size or a list is needed")
    return found


def _check_fits(model: torch.nn.Module, shapes: Shapes, folder: Path) -> None:
    """The model that a configuration describes is the one in the weights."""
    expected = {_plain(k): tuple(t.shape) for k, t in model.state_dict().items()}
    there = {_plain(key): shape for key, shape in shapes.items()}
    missing = sorted(expected.keys() - there.keys())
    if missing:
        raise CheckpointError(
            f"{folder}: its weights lack {len(missing)} of the {len(expected)} tensors that its "
            f"config.json describes, first {missing[0]}; take both from the same model"
        )
    for key, shape in expected.items():
        if there[key] != shape:
            raise CheckpointError(
                f"{folder}: {key} has shape {printable(there[key])} in its weights but "
                f"{printable(shape)} by its config.json; take both from the same model"
            )


def _plain(key: str) -> str:
    """A name without what versions of the libraries write differently."""
    before, dot, last = key.removeprefix("text_model.").rpartition(".")
    part, middle, layer = before.rpartition(".")
    if ".attentions." in key and layer in _OLD_ATTENTION:
        return f"{part}{middle}{_OLD_ATTENTION[layer]}{dot}{last}"
    return before + dot + last


def _check_index(path: Path, files: Collection[str]) -> None:
    """An index may only name shards that lie beside it."""
    named = read_config_json(path, largest=_MAX_INDEX).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(one, str) for one in named.values()):
        raise refused_json(path, "has no weight_map from names to files")
    if missing := sorted(set(named.values()) - set(files)):
        raise CheckpointError(
            f"{path}: names {printable(missing[0])}, which is not beside it; download the folder "
            "again"
        )


def _text_config(folder: Path, shapes: Shapes) -> CLIPTextConfig:
    """A text encoder's settings; those that could choose code are left out."""
    path = folder / "config.json"
    config = read_config_json(path)
    if (kind := config.get("model_type", "clip_text_model")) not in ("clip_text_model", "clip"):
        raise refused_json(path, f"is for a {printable(kind)}, not for CLIP's text model")
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads",
                "num_hidden_layers", "max_position_embeddings", "projection_dim"):  # fmt: skip
        if key in config:
            numbers(config, key, path)
    if config.get("num_hidden_layers", 1) > min(_MOST_BLOCKS, len(shapes)):
        raise refused_json(path, "describes more layers than its weights have")
    try:
        return CLIPTextConfig(**{key: config[key] for key in _TEXT_SETTINGS if key in config})
    except (StrictDataclassError, *MALFORMED) as error:
        raise refused_json(path, "has settings that CLIP's text model does not have") from error


def _tokenizer(folder: Path) -> CLIPTokenizer:
    for file in folder.glob("*"):
        if file.is_file() and file.stat().st_size > _MAX_TOKENIZER:
            raise CheckpointError(f"{file}: is too large for a tokenizer; download it again")
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        first = printable(str(error).strip().partition("\n")[0])
        raise CheckpointError(f"{folder}: cannot be opened ({first}); download it again") from error


def _schedule(path: Path) -> dict[str, Any]:
    """The scheduler's settings, of which betas and prediction_type are used."""
    config = {**_SCHEDULE, **read_config_json(path)}
    if config["prediction_type"] not in _PREDICTIONS:
        said = printable(config["prediction_type"])
        raise refused_json(path, f"has prediction_type {said}; {', '.join(_PREDICTIONS)} are known")
    for key in ("beta_start", "beta_end"):
        good = isinstance(config[key], int | float) and 0 < config[key] < 1
        if not good:
            raise refused_json(path, f"has {key} {printable(config[key])}, which is no noise")
    return config
