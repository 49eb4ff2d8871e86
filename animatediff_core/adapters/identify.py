"""Identification of a file: its content says what it is, by names and shapes; never its name."""

from collections.abc import Callable
from pathlib import Path

from ..checkpoints.file_report import FileReport, check_class, of_no_kind
from ..checkpoints.motion_files import motion_path
from ..checkpoints.published import recognise_published
from ..checkpoints.recognise import (
    recognise_base_folder,
    recognise_checkpoint,
    recognise_clip,
    recognise_motion,
    recognise_unet,
    recognise_vae,
)
from ..errors import CheckpointError
from ..weights.weight_file import WeightFile, open_model
from .control_files import recognise_control
from .ip_adapter import recognise_ip_adapter
from .lora.files import recognise_lora
from .lora.peft import lora_file
from .t2i_adapter import recognise_t2i_adapter
from .textual_inversion import recognise_embedding

RECOGNISERS: tuple[Callable[[WeightFile], FileReport | None], ...] = (
    recognise_published,
    recognise_ip_adapter,
    recognise_control,
    recognise_t2i_adapter,
    recognise_lora,
    recognise_motion,
    recognise_checkpoint,
    recognise_unet,
    recognise_vae,
    recognise_clip,
    recognise_embedding,
)
"""In this order, because the earlier kinds hold tensors that look like those of the later."""
_WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def identify(path: str | Path) -> FileReport:
    """Recognise a weight file or a model's folder; CheckpointError if it is neither."""
    path = Path(path)
    if (path / "unet" / "config.json").is_file():
        return recognise_base_folder(path)
    file = open_model(_model_in(path) if path.is_dir() else path)
    for recognise in RECOGNISERS:
        if (report := recognise(file)) is not None:
            return check_class(report)
    return of_no_kind(file)


def _model_in(folder: Path) -> Path:
    """The one model of a folder: a LoRA, a motion module, or the folder itself."""
    if (adapter := lora_file(folder)) != folder:
        return adapter
    if (motion := motion_path(folder)) is not None:
        return motion
    if (folder / "config.json").is_file():
        return folder
    files = sorted(file.name for file in folder.iterdir() if file.suffix in _WEIGHTS)
    if files:
        raise CheckpointError(
            f"{folder}: is no model's folder but holds {len(files)} weight files ({files[0]}"
            f"{', …' if files[1:] else ''}); name the files, for instance {folder}/*{_WEIGHTS[0]}"
        )
    raise CheckpointError(
        f"{folder}: is a folder without a model; name a weight file or its folder"
    )
