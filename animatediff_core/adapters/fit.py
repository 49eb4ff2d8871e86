"""The check of a file before it is loaded: its loader, run without values, from headers alone."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch

from ..checkpoints.base_model import BaseModel
from ..checkpoints.families import FOLDERS, families_with
from ..checkpoints.file_report import FileReport, require, wrong_family
from ..checkpoints.loading import load_parts, load_vae
from ..checkpoints.motion_module import load_motion_module
from ..checkpoints.single_file import load_single_unet
from ..motion import MotionModule
from ..weights.places import Role, local_path
from ..weights.weight_file import open_weights
from .identify import identify
from .ip_adapter import check_ip_adapter, load_image_encoder, read_ip_adapter
from .lora.files import LoraInfo, read_lora
from .lora.layers import image_deltas, motion_deltas
from .lora.peft import lora_file
from .sparse_ctrl import load_sparse_control
from .t2i_adapter import load_t2i_adapter
from .textual_inversion import (
    add_embedding,
    apply_embedding,
    bundled_embeddings,
    read_embedding,
)


def _load_controlnet(base: BaseModel, path: Path) -> None:
    from .controlnet import load_controlnet  # slow to import, and few jobs use one

    load_controlnet(path, base.unet, None)


def _load_lora(base: BaseModel, path: Path) -> None:
    image_deltas(base, path)
    if words := bundled_embeddings(open_weights(lora_file(path))):
        own = with_own_words(base)
        for embedding in words:
            add_embedding(own, embedding)


_LOADERS: Mapping[str, Callable[[BaseModel, Path], object]] = {
    "unet": lambda base, path: load_single_unet(path, base.unet.config, None),
    "vae": lambda base, path: load_vae(path, dict(base.vae.config)),
    "loras": _load_lora,
    "embeddings": apply_embedding,
    "controlnets": _load_controlnet,
    "sparse_controls": lambda base, path: load_sparse_control(path, base.unet, dtype=None),
    "t2i_adapters": lambda base, path: load_t2i_adapter(
        path, base.unet, base.vae_scale_factor, None
    ),
    "ip_adapters": lambda base, path: check_ip_adapter(base.unet, read_ip_adapter(path)),
}
"""By key of a prompt file: what loads a file for a base model."""
_ROLES: Mapping[str, Role] = {
    "unet": "control", "vae": "vae", "controlnets": "control", "sparse_controls": "control",
    "t2i_adapters": "control",
}  # fmt: skip


def check_fit(
    key: str, source: str, base: BaseModel, *, offline: bool, word: str | None = None
) -> FileReport:
    """Check that a source goes into a key and fits a base model without values; `word`: the
    placeholder token of an embedding, instead of its own."""
    path = local_path(source, _ROLES.get(key, "file"), offline=offline)
    report = identify(path)
    if report.kind != "base model" or key not in ("unet", "vae"):  # whose own part is used
        require(report, key, source)
        if {report.family, base.family} <= FOLDERS.keys() and report.family != base.family:
            raise wrong_family(report, base.family, source, base.source)
    with torch.device("meta"):
        if word is not None:
            apply_embedding(base, path, word)
        else:
            _LOADERS[key](base, path)
    return report


def check_motion_lora(source: str, motion: MotionModule, *, offline: bool) -> None:
    """Check that a source is a MotionLoRA and fits a motion module without values."""
    path = local_path(source, offline=offline)
    report = require(identify(path), "motion_loras", source)
    families = families_with(motion.config.block_out_channels)  # SD1.5's run on SD2 as well
    if families and report.family in FOLDERS and report.family not in families:
        raise wrong_family(report, " or ".join(families), source, "the motion module")
    with torch.device("meta"):
        motion_deltas(motion, path)


def check_alone(report: FileReport, base: BaseModel | None) -> None:
    """Check a file that was recognised: with a base model without values of its family, if there
    is one, else what needs none."""
    path, key = report.path, report.goes_in
    with torch.device("meta"):
        if key == "base":
            own_vae = report.details.get("VAE", "inside") == "inside"
            load_parts(path, str(path), None, None, own_vae=own_vae)
        elif key == "motion" and report.version is not None:
            load_motion_module(path, dtype=None)
        elif base is not None and key in _LOADERS:
            _LOADERS[key](with_own_words(base) if key == "embeddings" else base, path)
        elif isinstance(report, LoraInfo):
            read_lora(report)
        elif key == "ip_adapters":
            read_ip_adapter(path)
        elif key == "embeddings":
            read_embedding(path)
        elif report.kind == "image encoder" and path.is_dir():
            load_image_encoder(path, None)


def with_own_words(base: BaseModel) -> BaseModel:
    """A base model without values to which placeholder tokens can be added."""
    return replace(
        base,
        tokenizers=deepcopy(base.tokenizers),
        text_encoders=deepcopy(base.text_encoders),
        placeholder_tokens=list(base.placeholder_tokens),
    )
