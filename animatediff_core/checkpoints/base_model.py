"""Base models: where they are, of which family, and loaded as their ordinary parts."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from torch import nn

from ..errors import CheckpointError
from ..weights.files import check_weight_file
from ..weights.folder import adapter_layout, base_layout, vae_layout
from ..weights.hub import fetch, fetch_file, hub_id
from .families import family_of

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
    """As diffusers stores it: betas, prediction_type and rescale_betas_zero_snr are read."""
    family: str
    """SD1.5, SD2, SDXL, or the UNet's levels for another one."""
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
    def zero_snr(self) -> bool:
        """Whether it was trained with betas rescaled to end in pure noise (arXiv 2305.08891)."""
        return bool(self.scheduler_config.get("rescale_betas_zero_snr", False))

    @property
    def betas(self) -> tuple[float, float, str]:
        """The noise schedule that it was trained with: start, end, diffusers' name for the way."""
        kind = self.scheduler_config
        return float(kind["beta_start"]), float(kind["beta_end"]), str(kind["beta_schedule"])

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
    """Whether a name means a file or folder here rather than a hub id.

    It does where it is there, begins with / . or ~, or begins with a folder that is here, and
    where it has not the form of a hub id (hub.py). FOLDER/FILE.safetensors is a file here.
    """
    path = Path(source).expanduser()
    if os.path.exists(path) or path.is_absolute() or source.startswith((".", "~")):
        return True
    if "/" in source and Path(path.parts[0]).is_dir():
        return True
    wanted = hub_id(source)
    return wanted is None or (wanted.path is None and path.suffix in _MODEL_SUFFIXES)


def resolve_file(source: str, *, offline: bool = False) -> Path:
    """A weight file: a local path, `bundled:…`, or `ORG/REPOSITORY[@REVISION]/FILE` on the hub."""
    named = resolve_bundled(source)
    path = Path(named).expanduser()
    if os.path.exists(path):
        return path
    wanted = hub_id(named)
    if looks_local(named) or wanted is None or wanted.path is None:
        raise CheckpointError(
            f"{source}: no such file; check the path (on the hub: ORGANISATION/REPOSITORY/FILE)"
        )
    return fetch_file(named, offline=offline)


def load_base(
    source: str, *, vae: str | None = None, variant: str | None = None,
    dtype: torch.dtype = torch.float32, offline: bool = False,
) -> BaseModel:  # fmt: skip
    """Load a base model from `bundled:…`, a diffusers folder, a single file or a hub id.

    `variant` names which weights of a folder: fp16, for instance.
    """
    place = base_place(source, variant=variant, offline=offline)
    _silence_progress_bars()
    if place.is_dir():
        base = _from_folder(place, source, variant, dtype)
    else:
        from .single_file import load_single_file

        base = load_single_file(place, source, dtype, own_vae=vae is None)
    if vae is not None:
        base.vae = _load_vae(vae_place(vae, offline=offline), dict(base.vae.config))
    for part in (base.unet, base.vae, *base.text_encoders):
        part.requires_grad_(False).eval()
    return base


def _silence_progress_bars() -> None:
    """Progress is the command line's to show; the libraries' own bars would reach every log."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()


def base_place(source: str, *, variant: str | None = None, offline: bool) -> Path:
    """The local folder or file of a base model, fetched from the hub where needed."""
    named = resolve_bundled(source)
    path = Path(named).expanduser()
    if path.is_dir() and not (path / "unet").is_dir() and (path / "base" / "unet").is_dir():
        path = path / "base"
    there, wanted = os.path.exists(path), hub_id(named)
    if not there and (looks_local(named) or wanted is None):
        raise CheckpointError(f"{source}: no such base model; check the path, or name a hub id")
    if variant is not None:
        kind = "a bundled model" if named != source else "a single file"
        if named != source or (path.is_file() if there else wanted and wanted.path):
            raise CheckpointError(
                f"{source}: is {kind}, which has no variants; leave variant {variant} out"
            )
    if there:
        return path
    if wanted is not None and wanted.path is not None:
        return fetch_file(named, offline=offline)
    return fetch(named, lambda n: base_layout(n, variant, source).files, offline=offline)


def _from_folder(folder: Path, source: str, variant: str | None, dtype: torch.dtype) -> BaseModel:
    from .diffusers_folder import open_parts

    parts = open_parts(folder, source, variant, dtype)
    unet = parts["unet"]
    return BaseModel(
        unet=unet,
        vae=parts["vae"],
        text_encoders=[part for name, part in parts.items() if name.startswith("text_encoder")],
        tokenizers=[part for name, part in parts.items() if name.startswith("tokenizer")],
        scheduler_config=parts["scheduler"],
        family=family_of(unet.config.block_out_channels, unet.config.cross_attention_dim),
        source=source,
        folder=folder,
    )


def vae_place(source: str, *, offline: bool) -> Path:
    """The local file or folder of a separate VAE, fetched from the hub where needed."""
    named = resolve_bundled(source)
    path = Path(named).expanduser()
    wanted = None if looks_local(named) else hub_id(named)
    if wanted is not None and wanted.path is None:
        path = fetch(named, lambda names: vae_layout(names, source).files, offline=offline)
    elif not os.path.exists(path):
        return resolve_file(named, offline=offline)
    return path / "vae" if (path / "vae" / "config.json").is_file() else path


def motion_place(source: str, *, offline: bool) -> Path:
    """The local file or folder of a motion module; on the hub a file, or a MotionAdapter."""
    named = resolve_bundled(source)
    wanted = None if looks_local(named) else hub_id(named)
    if wanted is None or wanted.path is not None:
        return resolve_file(named, offline=offline)
    return fetch(named, lambda names: adapter_layout(names, source).files, offline=offline)


def _load_vae(path: Path, config: dict[str, Any]) -> AutoencoderKL:
    """A VAE in fp32; `config` is the base model's own, for a file that has none."""
    if path.is_dir():
        from .diffusers_folder import open_vae

        return open_vae(path)
    check_weight_file(path)
    from .single_file import load_single_vae

    return load_single_vae(path, torch.float32, config)
