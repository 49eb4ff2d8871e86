"""Stages `image` and `dreambooth` (arXiv 2208.12242): all weights of the UNet, on single frames.

DreamBooth also trains on images that the base model made before, to preserve what it knows.
"""

from pathlib import Path

from ...checkpoints.base_model import BaseModel
from ...checkpoints.write import write_base_folder
from ..config import TrainConfig
from ..stage import ImageLoss, Stage, Weights, frozen_text, image_scheduler


def image_stage(config: TrainConfig, base: BaseModel) -> Stage:
    """Train the UNet; the run also leaves the whole model under `base/`."""

    def export(weights: Weights, folder: Path) -> None:
        base.unet.load_state_dict(weights)
        write_base_folder(base, folder / "base")

    prior_weight = None
    if config.stage == "dreambooth":
        prior_weight = 1.0 if config.prior_weight is None else config.prior_weight
    base.unet.requires_grad_(True).train()
    return Stage(
        loss=ImageLoss(base.unet, image_scheduler(config, base), prior_weight=prior_weight),
        parameters=dict(base.unet.named_parameters()),
        embed=frozen_text(config, base),
        file_name="unet.safetensors",
        export=export,
    )
