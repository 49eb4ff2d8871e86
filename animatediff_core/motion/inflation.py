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
from .conditions import NO_CONDITIONS, Conditions, added_conditions
from .hooks import Clip, ImageHook, JoinFrames, MotionHook, PictureHook, SplitFrames
from .module import AS_TRAINED, MotionModule, Positions, TemporalTransformer


def inflate(unet: UNet2DConditionModel, motion: MotionModule) -> "AnimatedUNet":
    """Join an image UNet and a motion module; both stay the very same, live objects.

    Raises CheckpointError where the two do not fit, or where the UNet is already animated.
    """
    return AnimatedUNet(unet, motion)


class AnimatedUNet(nn.Module):
    """A UNet over clips, b c f h w; call the UNet only through it until `deflate`."""

    def __init__(self, unet: UNet2DConditionModel, motion: MotionModule) -> None:
        super().__init__()
        pairs = list(_sites(unet, motion))
        self.unet = unet
        self.motion = motion
        self._clip = Clip()
        self._at_deflate: list[Callable[[], None]] = []
        self._handles = [
            layer.register_forward_hook(MotionHook(transformer, self._clip, block))
            for layer, transformer, block in pairs
        ]
        if motion.conv_in is not None:
            hook = ImageHook(motion.conv_in, self._clip)
            self._handles.append(unet.conv_in.register_forward_hook(hook))
        if motion.config.resnet_norm == "clip":
            for norm in _resnet_norms(unet):
                self._handles += [
                    norm.register_forward_pre_hook(JoinFrames(self._clip)),
                    norm.register_forward_hook(SplitFrames(self._clip)),
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
        if not self._handles:
            raise RuntimeError("this model was deflated; inflate its UNet again")
        batch, _, frames = sample.shape[:3]
        given = conditions or NO_CONDITIONS
        self._check_frames(frames, given.motion_positions)
        self._check_image(sample, given.image_latents)
        time = torch.as_tensor(timestep, device=sample.device).expand(batch)
        states = text.flatten(0, 1) if text.ndim == 4 else text.repeat_interleave(frames, 0)
        self._clip.frames, self._clip.strength = frames, given.motion_strength
        self._clip.blocks, self._clip.weights = given.motion_blocks, given.motion_frames
        self._clip.positions = given.motion_positions
        self._clip.text = text if text.ndim == 3 else None
        self._weigh_pictures(given.image_weights)
        image = given.image_latents  # b 5 f h w
        self._clip.image = None if image is None else image.transpose(1, 2).flatten(0, 1)
        try:
            out = self.unet(
                sample.transpose(1, 2).flatten(0, 1),  # (b f) c h w
                time.repeat_interleave(frames),
                states,  # (b f) n d
                added_cond_kwargs=added_conditions(given, frames),
                down_block_additional_residuals=given.down_residuals or None,
                mid_block_additional_residual=given.mid_residual,
                down_intrablock_additional_residuals=list(given.adapter_residuals) or None,
                return_dict=False,
            )[0]
        finally:
            self._clip.frames = self._clip.image = self._clip.weights = self._clip.text = None
            self._clip.pictures = ()
        clips: Tensor = out.unflatten(0, (batch, frames)).transpose(1, 2)
        return clips

    def deflate(self) -> UNet2DConditionModel:
        """Take every hook out and give the image model back, bit for bit as it was."""
        while self._at_deflate:
            self._at_deflate.pop()()
        while self._handles:
            self._handles.pop().remove()
        return self.unet

    def undo_at_deflate(self, undo: Callable[[], None]) -> None:
        """Have something undone before the hooks are taken out."""
        self._at_deflate.append(undo)

    def call_again(self) -> AbstractContextManager[None]:
        """Within it the hooks see the call that is in progress now: for a backward's second run."""
        return self._clip.seen(replace(self._clip))

    def shared_text(self) -> Tensor | None:
        """The text of the call in progress, b n d, where all frames share it."""
        return self._clip.text

    def _weigh_pictures(self, weights: tuple[Tensor, ...]) -> None:
        """Weights by frame for this call, f each, on what the IP-Adapters in the UNet add."""
        self._clip.pictures = weights
        if not weights:
            return
        there = [one for one in self._handles if one.hooks_dict_ref() is not None]
        self._handles = there  # without those of adapters that were taken out since
        for processor in self.unet.attn_processors.values():
            for number, values in enumerate(getattr(processor, "to_v_ip", ())):
                if not any(
                    isinstance(hook, PictureHook) for hook in values._forward_hooks.values()
                ):
                    hook = PictureHook(self._clip, number)
                    self._handles.append(values.register_forward_hook(hook))

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
        """PIA's picture is there where the module wants one, and fits the noisy clip."""
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
                "the motion module is PIA, which animates a picture: conditions need "
                f"image_latents of shape {wanted} (mask, then the picture's latents), got {got}"
            )


def _sites(
    unet: UNet2DConditionModel, motion: MotionModule
) -> Iterator[tuple[nn.Module, TemporalTransformer, str]]:
    """Each layer that a temporal transformer follows, that transformer, its block's name."""
    _check_fit(unet, motion)
    named: list[tuple[str, Any, Any]] = []
    for side in ("down_blocks", "up_blocks"):
        both = zip(getattr(unet, side), getattr(motion, side), strict=True)
        named += [(f"{side}.{i}", block, moved) for i, (block, moved) in enumerate(both)]
    if motion.mid_block is not None:
        named.append(("mid_block", unet.mid_block, motion.mid_block))
    for name, block, moved in named:
        layers = getattr(block, "attentions", None) or block.resnets
        if len(moved.motion_modules) > len(layers):
            raise CheckpointError(
                f"the motion module has {len(moved.motion_modules)} layers in a block where "
                f"the UNet has {len(layers)}; it belongs to another kind of base model"
            )
        for layer, site in zip(layers, moved.motion_modules, strict=True):
            yield layer, site.temporal_transformer, name


def _check_fit(unet: UNet2DConditionModel, motion: MotionModule) -> None:
    if any(isinstance(h, MotionHook) for m in unet.modules() for h in m._forward_hooks.values()):
        raise CheckpointError("this UNet is already animated; call deflate() on that model first")
    ours = motion.config.block_out_channels
    theirs = tuple(unet.config.block_out_channels)
    if ours != theirs:
        raise CheckpointError(
            f"the motion module is made for {_family(ours)} but the base model is "
            f"{_family(theirs)}; use a module of the base model's family"
        )
    if motion.conv_in is not None:
        latents, wanted = unet.config.in_channels, motion.conv_in.in_channels
        if wanted != 2 * latents + 1:
            raise CheckpointError(
                f"the motion module's conv_in has {wanted} channels but this base model's "
                f"{latents} latents with mask and picture make {2 * latents + 1}; use a base "
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
    levels = ", ".join(map(str, channels))
    return f"{names[channels]} ({levels})" if channels in names else f"levels of {levels} channels"


def _resnet_norms(unet: UNet2DConditionModel) -> Iterator[nn.GroupNorm]:
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        for resnet in block.resnets:
            yield resnet.norm1
            yield resnet.norm2
    if unet.conv_norm_out is not None:
        yield unet.conv_norm_out
