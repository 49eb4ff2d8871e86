"""A base model: a text-to-image model in its ordinary parts."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from torch import nn


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
    placeholder_tokens: list[str] = field(default_factory=list)
    """The words of textual inversions that were added."""

    @property
    def prediction_type(self) -> str:
        """The prediction of the UNet: epsilon, v_prediction or sample."""
        return str(self.scheduler_config.get("prediction_type", "epsilon"))

    @property
    def zero_snr(self) -> bool:
        """Whether it was trained with betas rescaled to end in pure noise (arXiv 2305.08891)."""
        return bool(self.scheduler_config.get("rescale_betas_zero_snr", False))

    @property
    def betas(self) -> tuple[float, float, str]:
        """The noise schedule that it was trained with: start, end, diffusers' name for the way."""
        config = self.scheduler_config
        return float(config["beta_start"]), float(config["beta_end"]), str(config["beta_schedule"])

    @property
    def vae_scale_factor(self) -> int:
        """Pixels for one latent, in each direction."""
        return int(2 ** (len(self.vae.config["block_out_channels"]) - 1))

    def to(self, device: str | torch.device, dtype: torch.dtype) -> "BaseModel":
        """Move every part; the VAE stays in fp32, where half precision would overflow it."""
        for part in (self.unet, *self.text_encoders):
            nn.Module.to(part, device=device, dtype=dtype)  # diffusers' own warns of nothing here
        nn.Module.to(self.vae, device=device)
        return self
