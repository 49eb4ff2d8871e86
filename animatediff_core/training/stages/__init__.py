"""The training stages, one file each: where it starts, what it trains, how it is written."""

from pathlib import Path

from ...checkpoints.base_model import BaseModel
from ...weights.match import check_tensors, shapes_of
from ...weights.weight_file import open_weights
from ..config import TrainConfig
from ..stage import Stage
from .controlnet import controlnet_stage
from .image import image_stage
from .ip_adapter import ip_adapter_stage
from .lora import lora_stage
from .motion import motion_stage
from .motion_lora import motion_lora_stage
from .textual_inversion import textual_inversion_stage

__all__ = ["open_stage"]


def open_stage(config: TrainConfig, base: BaseModel, *, offline: bool) -> Stage:
    """The configuration's stage over a loaded base model."""
    if config.unet is not None:
        _replace_unet(base, Path(config.unet))
    match config.stage:
        case "motion":
            return motion_stage(config, base, offline=offline)
        case "motion-lora":
            return motion_lora_stage(config, base, offline=offline)
        case "image" | "dreambooth":
            return image_stage(config, base)
        case "lora":
            return lora_stage(config, base)
        case "textual-inversion":
            return textual_inversion_stage(config, base)
        case "controlnet":
            return controlnet_stage(config, base, offline=offline)
        case "ip-adapter":
            return ip_adapter_stage(config, base, offline=offline)


def _replace_unet(base: BaseModel, path: Path) -> None:
    file = open_weights(path)
    advice = "name the unet.safetensors that the image stage wrote"
    check_tensors(shapes_of(base.unet), file.shapes, path, "UNet of this base model", advice)
    base.unet.load_state_dict(file.tensors())
