"""Inflation: a stock image UNet gains a frame axis through forward hooks, and loses it again.

Frames are folded into the batch, so every 2D layer runs per frame, untouched. After each site,
an attention of a block or its ResNet where the block has none, a hook passes the features through
that site's temporal transformer (official `unet_blocks.py`, order ResNet, attention, motion).

Legend: b batch, f frames, c channels, h w latent size, n tokens, d features.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from diffusers.models import UNet2DConditionModel
from torch import Tensor, nn

from ..errors import CheckpointError
from .conditions import (
    NO_CONDITIONS,
    Conditions,
    added_conditions,
    fold_frames,
    guidance_embedding,
    text_by_frame,
    unfold_frames,
)
from .hooks import CallState, ImageHook, JoinFrames, MotionHook, SplitFrames
from .module import AS_TRAINED, MotionModule, Positions, TemporalTransformer


def inflate(unet: UNet2DConditionModel, motion: MotionModule) -> "AnimatedUNet":
    """Join an image UNet and a motion module; both stay the very same, live objects.

    Raises CheckpointError if the two do not fit, or if the UNet is already animated.
    """
    return AnimatedUNet(unet, motion)


class AnimatedUNet(nn.Module):
    """A UNet over clips, b c f h w; call the UNet only through it until `deflate`."""

    def __init__(self, unet: UNet2DConditionModel, motion: MotionModule) -> None:
        super().__init__()
        pairs = list(_sites(unet, motion))
        self.unet = unet
        self.motion = motion
        self.call = CallState()
        """The call in progress, for hooks that read its frames and conditions."""
        self.joint_latents = 0
        """Up to so many numbers of a clip both halves of guidance are one call: where they are
        quicker together."""
        self._at_deflate: list[Callable[[], None]] = []
        self._deflated = False
        self._handles = [
            layer.register_forward_hook(MotionHook(transformer, self.call, block))
            for layer, transformer, block in pairs
        ]
        if motion.conv_in is not None:
            hook = ImageHook(motion.conv_in, self.call)
            self._handles.append(unet.conv_in.register_forward_hook(hook))
        if motion.config.resnet_norm == "clip":
            for norm in _resnet_norms(unet):
                self._handles += [
                    norm.register_forward_pre_hook(JoinFrames(self.call)),
                    norm.register_forward_hook(SplitFrames(self.call)),
                ]

    def forward(
        self,
        sample: Tensor,
        timestep: int | Tensor,
        text: Tensor,
        conditions: Conditions | None = None,
    ) -> Tensor:
        """Predict for noisy clips.

        sample: b c f h w; timestep: int or (b,); text: b n d, or b f n d for text per frame.
        Returns b c f h w: noise, v or sample, as the base model's `prediction_type` says.
        """
        if self._deflated:
            raise RuntimeError("this model was deflated; inflate its UNet again")
        batch, _, frames = sample.shape[:3]
        conditions = conditions or NO_CONDITIONS
        self._check_frames(frames, conditions.motion_positions)
        self._check_image(sample, conditions.image_latents)
        time = torch.as_tensor(timestep, device=sample.device).expand(batch)
        self.call.begin(frames, conditions, text if text.ndim == 3 else None)
        try:
            out = self.unet(
                fold_frames(sample),
                time.repeat_interleave(frames),
                text_by_frame(text, frames),
                timestep_cond=self._guidance(conditions, sample),
                added_cond_kwargs=added_conditions(conditions, frames),
                cross_attention_kwargs=_attention_masks(conditions.image_masks, sample),
                down_block_additional_residuals=conditions.down_residuals or None,
                mid_block_additional_residual=conditions.mid_residual,
                down_intrablock_additional_residuals=list(conditions.adapter_residuals) or None,
                return_dict=False,
            )[0]
        finally:
            self.call.end()
        return unfold_frames(out, frames)

    def _guidance(self, conditions: Conditions, sample: Tensor) -> Tensor | None:
        """The embedding of the guidance scale, (b f) d, for a UNet that reads one."""
        width = self.unet.config.time_cond_proj_dim
        if width is None:
            return None
        embedding = guidance_embedding(width, conditions, len(sample) * sample.shape[2])
        return None if embedding is None else embedding.to(sample)

    def deflate(self) -> UNet2DConditionModel:
        """Take every hook out and give the image model back, bit for bit as it was."""
        while self._at_deflate:
            self._at_deflate.pop()()
        while self._handles:
            self._handles.pop().remove()
        self._deflated = True
        return self.unet

    def at_deflate(self, undo: Callable[[], None]) -> None:
        """Register something that `deflate` undoes before it takes the hooks out."""
        self._at_deflate.append(undo)

    def call_again(self) -> AbstractContextManager[None]:
        """Context manager: the hooks see the call that is in progress now, for the second run of a
        checkpointed backward."""
        return self.call.repeated(replace(self.call))

    def _check_frames(self, frames: int, positions: Positions) -> None:
        longest = self.motion.config.max_frames
        if positions.fit(frames, longest):
            return
        if positions != AS_TRAINED:
            raise CheckpointError(
                f"{positions} reads position {positions.last(frames):g} for {frames} frames, but "
                f"the motion module has 0 to {longest - 1}; lower the stretch or the offset"
            )
        raise CheckpointError(
            f"the motion module knows {longest} frames at most, got {frames}; "
            "ask for fewer frames or use a module made for more"
        )

    def _check_image(self, sample: Tensor, image: Tensor | None) -> None:
        """PIA's image is there if and only if the module reads one, and fits the noisy clip."""
        if (conv := self.motion.conv_in) is None:
            if image is not None:
                raise CheckpointError(
                    f"the motion module is {self.motion.config.version} and takes no "
                    "image_latents; leave them out, or use a PIA module"
                )
            return
        batch, channels, *size = sample.shape
        wanted = (batch, conv.in_channels - channels, *size)
        if image is None or tuple(image.shape) != wanted:
            got = "none" if image is None else f"{tuple(image.shape)}"
            raise CheckpointError(
                "the motion module is PIA, which animates an image: conditions need "
                f"image_latents of shape {wanted} (PIA mask, then the image's latents), got {got}"
            )


def _attention_masks(masks: tuple[Tensor, ...], sample: Tensor) -> dict[str, Any] | None:
    """The UNet's cross_attention_kwargs: IP-Adapter masks, f h w (or f 1 1) each -> (b f) 1 h w.

    diffusers 0.42 pads a mask with zeros if it has another aspect ratio than the latents.
    """
    if not masks:
        return None
    batch, size = len(sample), sample.shape[-2:]
    full = [mask.expand(-1, *size) if mask[0].numel() == 1 else mask for mask in masks]
    return {"ip_adapter_masks": [mask.repeat(batch, 1, 1).unsqueeze(1) for mask in full]}


def _sites(
    unet: UNet2DConditionModel, motion: MotionModule
) -> Iterator[tuple[nn.Module, TemporalTransformer, str]]:
    """Each layer that a temporal transformer follows, that transformer, its block's name."""
    _check_fit(unet, motion)
    named: list[tuple[str, Any, Any]] = []
    for side in ("down_blocks", "up_blocks"):
        pairs = zip(getattr(unet, side), getattr(motion, side), strict=True)
        named += [(f"{side}.{i}", *pair) for i, pair in enumerate(pairs)]
    if motion.mid_block is not None:
        named.append(("mid_block", unet.mid_block, motion.mid_block))
    for name, block, motion_block in named:
        layers = getattr(block, "attentions", None) or block.resnets
        if len(motion_block.motion_modules) > len(layers):
            raise CheckpointError(
                f"the motion module has {len(motion_block.motion_modules)} layers in a block where "
                f"the UNet has {len(layers)}; it belongs to another kind of base model"
            )
        for layer, site in zip(layers, motion_block.motion_modules, strict=True):
            yield layer, site.temporal_transformer, name


def _check_fit(unet: UNet2DConditionModel, motion: MotionModule) -> None:
    if any(isinstance(h, MotionHook) for m in unet.modules() for h in m._forward_hooks.values()):
        raise CheckpointError("this UNet is already animated; call deflate() on that model first")
    module_channels = motion.config.block_out_channels
    unet_channels = tuple(unet.config.block_out_channels)
    if module_channels != unet_channels:
        raise CheckpointError(
            f"the motion module is made for {_family(module_channels)} but the base model is "
            f"{_family(unet_channels)}; use a module of the base model's family"
        )
    if motion.conv_in is not None:
        latents, wanted = unet.config.in_channels, motion.conv_in.in_channels
        if wanted != 2 * latents + 1:
            raise CheckpointError(
                f"the motion module's conv_in has {wanted} channels but this base model's "
                f"{latents} latents with mask and image make {2 * latents + 1}; use a base "
                "model of its family"
            )
    layers = unet.config.layers_per_block
    counts = {layers} if isinstance(layers, int) else set(layers)
    if counts != {motion.config.layers_per_block}:
        raise CheckpointError(
            f"the motion module has {motion.config.layers_per_block} layers a block but the base "
            f"model has {layers}; use a module of the base model's family"
        )


def _family(channels: tuple[int, ...]) -> str:
    names = {(320, 640, 1280, 1280): "SD1.5", (320, 640, 1280): "SDXL"}
    listed = ", ".join(map(str, channels))
    return f"{names[channels]} ({listed})" if channels in names else f"blocks of {listed} channels"


def _resnet_norms(unet: UNet2DConditionModel) -> Iterator[nn.GroupNorm]:
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        for resnet in block.resnets:
            yield resnet.norm1
            yield resnet.norm2
    if unet.conv_norm_out is not None:
        yield unet.conv_norm_out
