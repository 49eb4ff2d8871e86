"""SparseCtrl's condition encoder (arXiv 2311.16933): a ControlNet whose frames talk to each other.

It is a stock `diffusers.ControlNetModel` over the frames, with a temporal transformer of one
attention after every site of its down blocks, by the same hooks that animate a UNet. As in the
official `sparse_controlnet.py` it does not see the noisy clip (zeros stand for it), only the
conditions: images or their latents at some frames, zeros at the others, and a last channel that is
1 at the frames with an image.

Legend: b batch, f frames, c channels, h w latent size, n tokens, d features.
"""

from typing import Literal

import torch
from diffusers.models import UNet2DConditionModel
from torch import Tensor, nn

from .conditions import NO_CONDITIONS, fold_frames
from .config import MotionConfig
from .hooks import CallState, MotionHook
from .module import TemporalTransformer

Reads = Literal["latents", "pictures"]
Residuals = tuple[tuple[Tensor, ...], Tensor]
"""Residuals of the UNet's skip connections, each (b f) c h w, and of its mid block."""


class SparseControlNet(nn.Module):
    """Keys: those of a ControlNet below `controlnet.`, and the official ones of the sites."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        config: MotionConfig,
        reads: Reads,
        embedding_channels: tuple[int, ...] = (16, 32, 96, 256),
    ) -> None:
        """A fresh encoder for a UNet's structure, as the official `from_unet`; no weight is taken.

        `reads`: VAE latents of images, which one convolution reads, or images in pixels
        (scribbles), which the convolutions of `embedding_channels` reduce to latent size.
        """
        from diffusers.models import ControlNetModel  # slow to import, and few jobs use one

        super().__init__()
        self.reads: Reads = reads
        self.max_frames = config.max_frames
        image_channels = unet.config.in_channels if reads == "latents" else 3
        self.controlnet = ControlNetModel.from_unet(
            unet,
            conditioning_embedding_out_channels=embedding_channels,
            load_weights_from_unet=False,
            conditioning_channels=image_channels + 1,
        )
        if reads == "latents":
            self.controlnet.controlnet_cond_embedding = nn.Conv2d(
                image_channels + 1, config.block_out_channels[0], 3, padding=1
            )
        blocks = [_SparseBlock(channels, config) for channels in config.block_out_channels]
        self.down_blocks = nn.ModuleList(blocks)
        self._call = CallState()
        for block, moved in zip(self.controlnet.down_blocks, blocks, strict=True):
            layers = getattr(block, "attentions", None) or block.resnets
            for layer, site in zip(layers, moved.sites, strict=True):
                layer.register_forward_hook(MotionHook(site.temporal_transformer, self._call))

    def forward(self, condition: Tensor, timestep: Tensor, text: Tensor) -> Residuals:
        """condition: b c f h w in pixels or latents, its last channel 1 at the frames with an image
        and 0 elsewhere; timestep: (b,); text: (b f) n d. Returns residuals at full strength.
        """
        frames = condition.shape[2]
        folded = fold_frames(condition)
        reduced = 1 if self.reads == "latents" else self._pixels_for_latent
        height, width = (side // reduced for side in folded.shape[2:])
        first = self.controlnet.conv_in
        nothing = folded.new_zeros(len(folded), first.in_channels, height, width)
        self._call.begin(frames, NO_CONDITIONS)
        try:
            down, mid = self.controlnet(
                nothing,
                timestep.repeat_interleave(frames),
                text,
                folded,
                return_dict=False,
            )
        finally:
            self._call.end()
        return tuple(down), mid

    @property
    def _pixels_for_latent(self) -> int:
        blocks = self.controlnet.controlnet_cond_embedding.blocks
        return int(2 ** sum(block.stride[0] == 2 for block in blocks))


class _SparseBlock(nn.Module):
    def __init__(self, channels: int, config: MotionConfig) -> None:
        super().__init__()
        self.sites = [_SparseSite(channels, config) for _ in range(config.layers_per_block)]
        self.motion_modules = nn.ModuleList(self.sites)


class _SparseSite(nn.Module):
    """A layer of the official key names, as in the motion module."""

    def __init__(self, channels: int, config: MotionConfig) -> None:
        super().__init__()
        self.temporal_transformer = TemporalTransformer(channels, config, attentions=1)


def sparse_condition(images: dict[int, Tensor], frames: int) -> Tensor:
    """Input of an encoder, 1 c+1 f h w: images or latents, c h w each, at their frames of a clip.

    The last channel is 1 at these frames; all else is 0.
    """
    some = next(iter(images.values()))
    channels, height, width = some.shape
    condition = torch.zeros(1, channels + 1, frames, height, width).to(some)
    for frame, image in images.items():
        condition[0, :-1, frame] = image
        condition[0, -1, frame] = 1
    return condition
