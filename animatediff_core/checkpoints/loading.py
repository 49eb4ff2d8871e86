"""Base models, loaded from a folder or a single file as their ordinary parts."""

from pathlib import Path
from typing import Any

import torch
from diffusers.models import AutoencoderKL

from ..weights.places import local_path
from .base_model import BaseModel
from .diffusers_folder import load_folder, open_vae
from .single_file import load_single_file, load_single_unet, load_single_vae


def load_base(
    source: str,
    *,
    vae: str | None = None,
    unet: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype | None = torch.float32,
    offline: bool = False,
) -> BaseModel:
    """Load a base model from `bundled:…`, a diffusers folder, a single file or a hub id.

    `unet` and `vae` replace its own. `variant` names which weights of a folder: fp16, for instance.
    With the dtype None each weight of the UNet and the text encoders is as its file has it, until
    `BaseModel.to`; the VAE is in fp32.
    """
    path = local_path(source, "base", variant=variant, offline=offline)
    _silence_progress_bars()
    base = load_parts(path, source, variant, dtype, own_vae=vae is None)
    if vae is not None:
        base.vae = load_vae(local_path(vae, "vae", offline=offline), dict(base.vae.config))
    if unet is not None:
        path = local_path(unet, "control", offline=offline)
        base.unet = load_single_unet(path, base.unet.config, dtype)
    for part in (base.unet, base.vae, *base.text_encoders):
        part.requires_grad_(False).eval()
    return base


def load_parts(
    path: Path, source: str, variant: str | None, dtype: torch.dtype | None, *, own_vae: bool
) -> BaseModel:
    """A base model from its folder or file; `own_vae` off leaves the VAE of a file empty."""
    if path.is_dir():
        return load_folder(path, source, variant, dtype)
    return load_single_file(path, source, dtype, own_vae=own_vae)


def load_vae(path: Path, config: dict[str, Any]) -> AutoencoderKL:
    """A VAE in fp32; `config` is the base model's own, for a file that has none."""
    return open_vae(path) if path.is_dir() else load_single_vae(path, torch.float32, config)


def _silence_progress_bars() -> None:
    """Progress is the command line's to show; the libraries' own bars would reach every log."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
