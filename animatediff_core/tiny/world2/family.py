"""All parts of world 2's family on one device: what draws, encodes, reads and denoises.

Legend: b scenes, n images, f frames, h w latent size, t tokens, d features.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ...diffusion.schedules import training_scheduler
from ...motion import LINEAR_BETAS
from . import models, state
from .judge_network import new_judge
from .recipes import RECIPES, TOY_RECIPES, Recipe
from .renderer import Renderer
from .scenes import COUNTS, Captions, Scenes
from .words import END, START, TOKENS


@dataclass(kw_only=True)
class Family:
    """All parts of the family on one device."""

    folder: Path
    """Where the state is."""
    device: torch.device
    dtype: torch.dtype = torch.float32
    sizes: models.Sizes = models.FULL

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.renderer = Renderer(self.sizes.pixels).to(self.device)
        self.captions = Captions().to(self.device)
        self.scheduler = training_scheduler(LINEAR_BETAS, prediction_type="v_prediction")
        self.scheduler.alphas_cumprod = self.scheduler.alphas_cumprod.to(self.device)
        self.vae = models.new_vae(self.sizes)
        self.text = models.new_text_encoder(self.sizes)
        self.naming = nn.Linear(self.sizes.text, sum(COUNTS))
        self._language = nn.ModuleDict({"encoder": self.text, "naming": self.naming})
        self.unet = models.new_unet(self.sizes)
        self.motion = models.new_motion_module(self.sizes)
        self.judge = new_judge(self.sizes.pixels, self.sizes.judge)
        self.notes = {}
        for name, part in self.parts().items():
            self.notes[name] = state.load_part(self.folder, name, part) or {}
            part.to(self.device, self.dtype).requires_grad_(False)
        if self.device.type != "cpu":  # where torch 2.14 crashes in the backward
            self.arrange(torch.channels_last)
        self.unet.register_forward_pre_hook(lambda _, given: (given[0].to(self.dtype), *given[1:]))

    @property
    def recipes(self) -> dict[str, Recipe]:
        """How each stage is trained at this size."""
        return TOY_RECIPES if self.sizes == models.TOY else RECIPES

    def parts(self) -> dict[str, nn.Module]:
        """The parts by the names of their files."""
        return {
            "vae": self.vae,
            "text": self._language,
            "unet": self.unet,
            "motion": self.motion,
            "judge": self.judge,
        }

    def arrange(self, layout: torch.memory_format) -> None:
        """Lay out the weights of all convolutions."""
        for part in self.parts().values():
            part.to(memory_format=layout)  # type: ignore[call-overload]

    def images(self, scenes: Scenes, frames: int = 1) -> Tensor:
        """n 3 h w in [-1, 1]: one frame at a random time of each scene, or all of them."""
        count = len(scenes.color)
        if frames == 1:
            time = torch.rand(count, 1, device=self.device)
        else:
            time = torch.linspace(0, 1, frames, device=self.device).expand(count, frames)
        return self.renderer.draw(scenes, time) * 2 - 1

    @torch.no_grad()
    def latents(self, scenes: Scenes, frames: int = 1) -> Tensor:
        """n 4 h w in fp32, the mode of the VAE posterior."""
        images = self.images(scenes, frames).to(self.dtype)
        moments: Tensor = self.vae.quant_conv(self.vae.encoder(images))
        return moments[:, :4].float()

    def decode(self, latents: Tensor) -> Tensor:
        """n 4 h w -> n 3 h w in [0, 1]."""
        with torch.no_grad():
            parts = latents.to(self.dtype).split(64)
            decoded = torch.cat([self.vae.decode(part).sample for part in parts])
        return (decoded.float() / 2 + 0.5).clamp(0, 1)

    def encode_text(self, ids: Tensor) -> Tensor:
        """b t d."""
        states: Tensor = self.text(input_ids=ids).last_hidden_state
        return states

    def caption_ids(self, scenes: Scenes) -> Tensor:
        """b t, one wording of each scene."""
        chances = torch.rand(len(scenes.color), 16, device=self.device)
        return self.captions.ids(self.captions.choose(scenes, chances))

    def empty(self, count: int) -> Tensor:
        """The empty caption's ids: b t."""
        ids = torch.full((count, TOKENS), END, device=self.device)
        ids[:, 0] = START
        return ids

    def timesteps(self, count: int, mean: float, deviation: float) -> Tensor:
        """Around the middle: logit-normal."""
        drawn = torch.randn(count, device=self.device) * deviation + mean
        return (drawn.sigmoid() * 1000).long().clamp(0, 999)
