"""Base models: where they are, of which family, and loaded as their ordinary parts."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from torch import nn

from ..errors import CheckpointError, SurroundingsError
from .files import check_weight_file, read_shapes

BUNDLED = "bundled:"
MODELS = Path(__file__).parent.parent / "models"
_MODEL_SUFFIXES = {".safetensors", ".ckpt", ".pt", ".pth", ".bin"}


@dataclass
class BaseModel:
    """A text-to-image model in its parts, each in eval mode and without gradients."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoders: list[Any]
    """One CLIPTextModel, or SDXL's two."""
    tokenizers: list[Any]
    scheduler_config: dict[str, Any]
    """As diffusers stores it: betas and prediction_type are read from here."""
    family: str
    """SD1.5, SDXL, or the UNet's levels for another one."""
    source: str
    folder: Path | None = None
    """Where its files are, if they are a diffusers folder."""
    triggers: list[str] = field(default_factory=list)
    """Words that textual inversions have added."""

    @property
    def prediction_type(self) -> str:
        """What the UNet predicts: epsilon, v_prediction or sample."""
        return str(self.scheduler_config.get("prediction_type", "epsilon"))

    @property
    def factor(self) -> int:
        """Pixels for one latent, in each direction."""
        return vae_factor(self.vae.config)

    def to(self, device: str | torch.device, dtype: torch.dtype) -> "BaseModel":
        """Move every part; the VAE stays in fp32, where half precision would overflow it."""
        for part in (self.unet, *self.text_encoders):
            nn.Module.to(part, device=device, dtype=dtype)  # diffusers' own warns of nothing here
        nn.Module.to(self.vae, device=device)
        return self


def vae_factor(config: Any) -> int:
    """Pixels for one latent of a VAE's configuration."""
    channels = config["block_out_channels"]
    return int(2 ** (len(channels) - 1))


def family_of(block_out_channels: Sequence[int], cross_attention_dim: int) -> str:
    """A name for a UNet's family; motion modules fit within one."""
    known = {((320, 640, 1280, 1280), 768): "SD1.5", ((320, 640, 1280, 1280), 1024): "SD2",
             ((320, 640, 1280), 2048): "SDXL"}  # fmt: skip
    levels = tuple(block_out_channels)
    return known.get((levels, cross_attention_dim), f"levels {', '.join(map(str, levels))}")


def resolve_bundled(source: str) -> str:
    """`bundled:NAME/REST` -> a path inside the package; anything else unchanged."""
    if not source.startswith(BUNDLED):
        return source
    path = MODELS / source.removeprefix(BUNDLED)
    if not path.exists():
        there = ", ".join(sorted(p.name for p in MODELS.iterdir() if (p / "base").is_dir()))
        raise CheckpointError(f"{source}: no such bundled model; there is {there or 'none'}")
    return str(path)


def looks_local(source: str) -> bool:
    """Whether a name means a file or folder here rather than a hub id."""
    path = Path(source).expanduser()
    if path.exists() or path.is_absolute() or source.startswith((".", "~")):
        return True
    if "/" in source and Path(path.parts[0]).is_dir():
        return True
    return (
        path.suffix in _MODEL_SUFFIXES and source.count("/") != 2 or source.count("/") not in (1, 2)
    )


def resolve_file(source: str, *, offline: bool = False) -> Path:
    """A weight file: a local path, `bundled:…`, or `ORG/REPOSITORY/FILE` on the hub."""
    source = resolve_bundled(source)
    path = Path(source).expanduser()
    if path.exists():
        return path
    if looks_local(source) or source.count("/") != 2:
        raise CheckpointError(
            f"{source}: no such file; check the path (on the hub: ORGANISATION/REPOSITORY/FILE)"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    organisation, repository, name = source.split("/")
    try:
        return Path(hf_hub_download(f"{organisation}/{repository}", name, local_files_only=offline))
    except LocalEntryNotFoundError as error:
        raise unreachable(source, offline) from error
    except EntryNotFoundError as error:
        raise CheckpointError(f"{source}: the hub has no such file; check its name") from error
    except (HfHubHTTPError, OSError) as error:
        raise unreachable(source, offline) from error


def unreachable(source: str, offline: bool) -> SurroundingsError:
    """The error for a hub id that cannot be fetched."""
    why = "is not in the local cache and --offline is set" if offline else "cannot be fetched"
    return SurroundingsError(
        f"{source}: {why}; connect to the hub once to fetch it, or name a local file or folder"
    )


def load_base(
    source: str, *, vae: str | None = None, dtype: torch.dtype = torch.float32,
    offline: bool = False,
) -> BaseModel:  # fmt: skip
    """Load a base model from `bundled:…`, a diffusers folder, a single file or a hub id."""
    place = base_place(source, offline=offline)
    _silence_progress_bars()
    base = (
        _from_folder(place, source, dtype) if place.is_dir() else _from_file(place, source, dtype)
    )
    if vae is not None:
        base.vae = _load_vae(resolve_bundled(vae), dtype=torch.float32, offline=offline)
    for part in (base.unet, base.vae, *base.text_encoders):
        part.requires_grad_(False).eval()
    return base


def _silence_progress_bars() -> None:
    """Progress is the command line's to show; the libraries' own bars would reach every log."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()


def base_place(source: str, *, offline: bool) -> Path:
    """The local folder or file of a base model, fetched from the hub where needed."""
    named = resolve_bundled(source)
    path = Path(named).expanduser()
    if path.is_dir() and not (path / "unet").is_dir() and (path / "base" / "unet").is_dir():
        path = path / "base"
    if path.exists():
        return path
    if looks_local(named):
        raise CheckpointError(f"{source}: no such base model; check the path, or name a hub id")
    if named.count("/") == 2:
        return resolve_file(named, offline=offline)
    return _snapshot(named, offline)


def _snapshot(source: str, offline: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    offline = offline or os.environ.get("HF_HUB_OFFLINE", "") in ("1", "true", "True")
    patterns = ["*/*.json", "*/*.txt", "*/*.safetensors", "model_index.json"]
    try:
        return Path(snapshot_download(source, allow_patterns=patterns,
                                      ignore_patterns=["*.fp16.*", "*non_ema*", "safety_checker/*"],
                                      local_files_only=offline))  # fmt: skip
    except LocalEntryNotFoundError as error:
        raise unreachable(source, offline) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{source}: the hub has no such model, or it needs a log-in; check the name"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise unreachable(source, offline) from error


def _from_folder(folder: Path, source: str, dtype: torch.dtype) -> BaseModel:
    from transformers.models.clip import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        if not (folder / part).is_dir():
            raise CheckpointError(
                f"{source}: is no diffusers folder, it has no {part}/; "
                "name a folder as save_pretrained writes it, or a single checkpoint file"
            )
    _check_folder_weights(folder)
    unet = _opened(UNet2DConditionModel, folder / "unet", dtype)
    encoders = [_opened(CLIPTextModel, folder / "text_encoder", dtype)]
    tokenizers = [CLIPTokenizer.from_pretrained(folder / "tokenizer")]
    if (folder / "text_encoder_2").is_dir():
        encoders.append(_opened(CLIPTextModelWithProjection, folder / "text_encoder_2", dtype))
        tokenizers.append(CLIPTokenizer.from_pretrained(folder / "tokenizer_2"))
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    return BaseModel(
        unet=unet,
        vae=_opened(AutoencoderKL, folder / "vae", torch.float32),
        text_encoders=encoders,
        tokenizers=tokenizers,
        scheduler_config=scheduler,
        family=family_of(unet.config.block_out_channels, unet.config.cross_attention_dim),
        source=source,
        folder=folder,
    )


def _opened(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    word = "torch_dtype" if kind.__module__.startswith("diffusers") else "dtype"
    try:
        return kind.from_pretrained(folder, local_files_only=True, **{word: dtype})
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{folder}: cannot be opened ({first}); download it again") from error


def _check_folder_weights(folder: Path) -> None:
    for part in ("unet", "vae", "text_encoder"):
        files = [p for p in (folder / part).iterdir() if p.suffix in _MODEL_SUFFIXES]
        if not files:
            raise CheckpointError(f"{folder / part}: holds no weights; download the folder again")
        for file in files:
            check_weight_file(file)


def _from_file(path: Path, source: str, dtype: torch.dtype) -> BaseModel:
    """A single-file checkpoint (SD1.x or SDXL), read by diffusers' own converters."""
    shapes = read_shapes(path)
    if not any(key.startswith("model.diffusion_model.") for key in shapes):
        raise CheckpointError(
            f"{source}: is no base checkpoint (it has no model.diffusion_model tensors); "
            "`animatediff inspect` says what it is"
        )
    if any(key.startswith("cond_stage_model.model.") for key in shapes):
        raise CheckpointError(
            f"{source}: is an SD2 checkpoint; save it as a diffusers folder first (SD1.x and SDXL "
            "work as single files)"
        )
    from .single_file import load_single_file

    return load_single_file(
        path, source, dtype, xl="conditioner.embedders.1.model.ln_final.weight" in shapes
    )


def _load_vae(source: str, *, dtype: torch.dtype, offline: bool) -> AutoencoderKL:
    path = Path(source).expanduser()
    if path.is_dir():
        inner = path / "vae" if (path / "vae").is_dir() else path
        vae: AutoencoderKL = _opened(AutoencoderKL, inner, dtype)
        return vae
    if not path.exists() and not looks_local(source):
        return _load_vae(str(_snapshot(source, offline)), dtype=dtype, offline=offline)
    check_weight_file(path)
    from .single_file import load_single_vae

    return load_single_vae(path, dtype)
