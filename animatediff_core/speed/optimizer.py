"""Optimise a loaded model, and undo it.

Each layer keeps its place, its name and its hooks; only its forward is replaced, on the object.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from diffusers.models import AutoencoderKL
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from ..motion import AnimatedUNet, Conditions
from ..motion.hooks import CallState
from ..motion.module import FrameAttention, TemporalTransformer
from . import plain_ops
from .blocks import (
    FastResnet,
    FastTemporal,
    FastTransformer,
    norm_forward,
    resnet_fits,
)
from .graphs import Graphs
from .layers import Setting, stack_projections, unstack_projections

JOINT_LATENTS = 1 << 16
"""16 frames of 256 x 256 pixels do not fill a GPU; 512 x 512 do, where two halves only take twice
the memory."""


def optimize(animated: AnimatedUNet, *, fused: bool = True) -> AnimatedUNet:
    """Make a model faster and leaner on its device; its numbers stay.

    Forwards that copy nothing take over (see blocks.py), on CUDA with kernels of their own and
    replayed as CUDA graphs. A call that could be asked for gradients runs the plain forwards.
    `animated.deflate()` and `restore` undo it.

    fused: False changes the layout of weights alone, for a model that torch.compile makes.
    """
    if _applied(animated) is not None:
        return animated
    projects = animated.unet.config.encoder_hid_dim_type  # then the UNet makes another text of it
    done = Applied(fused=fused, call=None if projects else animated.call)
    animated.__dict__["applied_speed"] = animated.unet.__dict__["applied_speed"] = done
    animated.at_deflate(lambda: restore(animated))
    _apply(animated.unet, done)
    _apply(animated.motion, done)
    if done.setting is not None:
        graphs = None
        if animated.unet.device.type == "cuda":
            graphs = Graphs(animated)
            animated.joint_latents = JOINT_LATENTS
        done.replace(animated, FastAnimated(animated, graphs).forward)
    return animated


def optimize_vae(vae: AutoencoderKL) -> AutoencoderKL:
    """Make a VAE faster; it may still move to another dtype."""
    if _applied(vae) is None:
        done = Applied()
        vae.__dict__["applied_speed"] = done
        _apply(vae, done)
    return vae


def restore(model: nn.Module) -> None:
    """Take everything off again; the model is as it was, bit for bit."""
    done = _applied(model)
    if done is not None:
        done.undo()
    for part in (model, getattr(model, "unet", model)):
        part.__dict__.pop("applied_speed", None)
    if isinstance(model, AnimatedUNet):
        model.joint_latents = 0


def kernels_of(model: nn.Module) -> str:
    """The kind of forwards that a model runs: fused or plain."""
    done = _applied(model)
    return "fused" if done is not None and done.setting is not None else "plain"


@cache
def has_kernels(device: torch.device) -> bool:
    """Whether Triton's kernels run on a device."""
    from torch.utils._triton import has_triton

    if device.type != "cuda" or not torch.cuda.is_available() or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0) and has_triton()


@dataclass
class FastAnimated:
    """The forward of an animated model, without gradients unless something could need one."""

    animated: AnimatedUNet
    graphs: Graphs | None = None

    def forward(
        self,
        sample: Tensor,
        timestep: int | Tensor,
        text: Tensor,
        conditions: Conditions | None = None,
    ) -> Tensor:
        """Take and return the tensors of the animated model's own forward."""
        own = self.animated
        if torch.is_grad_enabled() and _learns(own, sample, text, conditions):
            return type(own).forward(own, sample, timestep, text, conditions)
        with torch.no_grad():
            if self.graphs is None:
                return type(own).forward(own, sample, timestep, text, conditions)
            if not isinstance(timestep, Tensor):
                timestep = torch.full((sample.shape[0],), timestep, device=sample.device)
            return self.graphs(sample, timestep, text, conditions)


@dataclass
class Applied:
    """The changes that `optimize` made to one model."""

    fused: bool = True
    """Whether forwards may be replaced."""
    call: CallState | None = None
    """The animated model's call in progress."""
    setting: Setting | None = None
    """Of the forwards that took over."""
    places: dict[Any, list[Tensor]] = field(default_factory=dict)
    """Positions of frames that temporal transformers share."""
    modules: list[nn.Module] = field(default_factory=list)
    """Those whose forward was replaced."""
    relaid: list[nn.Conv2d] = field(default_factory=list)
    """Those whose weight has become channels-last."""
    stacked: list[nn.Module] = field(default_factory=list)
    """Attentions whose projections lie behind one another."""

    def replace(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        """Put a forward in front of a module's own."""
        module.__dict__["forward"] = forward
        self.modules.append(module)

    def undo(self) -> None:
        """Take the changes back."""
        for module in self.modules:
            module.__dict__.pop("forward", None)
        for layer in self.relaid:
            layer.weight.data = layer.weight.data.contiguous()
        for attention in self.stacked:
            unstack_projections(attention)
        self.places.clear()


def _apply(model: nn.Module, done: Applied) -> None:
    """Every layer under a model that nobody trains."""
    if any(parameter.requires_grad for parameter in model.parameters()):
        return
    device = next(model.parameters()).device
    if done.fused and has_kernels(device):
        from . import kernels

        done.setting = Setting(kernels, chunked=False, call=done.call)
    elif done.fused and device.type == "cpu":
        done.setting = Setting(plain_ops, chunked=True, call=done.call)
    for module in reversed(list(model.modules())):  # projections are stacked after they are copied
        _apply_to(module, done)


def _apply_to(module: nn.Module, done: Applied) -> None:
    setting = done.setting
    if type(module) is nn.Conv2d:
        _relay(module)
        done.relaid.append(module)
        done.replace(module, RelaidConvolution(module).forward)
    elif setting is None:
        return
    elif isinstance(module, TemporalTransformer):
        done.replace(module, FastTemporal(module, setting, done.places).forward)
    elif type(module) is Transformer2DModel:
        done.replace(module, FastTransformer(module, setting).forward)
    elif type(module) is ResnetBlock2D and resnet_fits(module):
        done.replace(module, FastResnet(module, setting).forward)
    elif type(module) is nn.GroupNorm:
        done.replace(module, norm_forward(module, setting))
    elif isinstance(module, FrameAttention) or (
        isinstance(module, Attention) and not module.is_cross_attention
    ):
        if stack_projections(module):
            done.stacked.append(module)
    elif type(module) is nn.Linear and setting.chunked:
        # the matrix kernels round by how memory is aligned, which differs from file to file
        module.weight.data = module.weight.data.clone()


def _relay(layer: nn.Conv2d) -> None:
    weight = layer.weight.data
    moved = weight.contiguous(memory_format=torch.channels_last)
    layer.weight.data = moved.clone() if moved.data_ptr() == weight.data_ptr() else moved


@dataclass
class RelaidConvolution:
    """The forward of a convolution whose weight, o i k l, is channels-last."""

    layer: nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        """With gradients by plain features, for torch 2.13 crashes in a frozen GroupNorm's
        channels-last backward."""
        own = self.layer
        if not torch.is_grad_enabled():
            return type(own).forward(own, x)
        y: Tensor = own._conv_forward(x.contiguous(), own.weight.contiguous(), own.bias)
        return y


def _applied(model: nn.Module) -> Applied | None:
    found: Applied | None = model.__dict__.get("applied_speed")
    return found


def _learns(animated: AnimatedUNet, *inputs: object) -> bool:
    """Whether a call could be asked for gradients."""
    given = [*inputs]
    for one in inputs:
        if isinstance(one, Conditions):
            given += vars(one).values()
    given += [part for one in given if isinstance(one, tuple) for part in one]
    tensors = [one for one in given if isinstance(one, Tensor)]
    return any(tensor.requires_grad for tensor in [*tensors, *animated.parameters()])
