"""What is put onto a loaded model, and how it is taken off again.

Each layer keeps its place, its name and its hooks; only its forward is replaced, on the object.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models import AutoencoderKL
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..motion import AnimatedUNet, Conditions
from ..motion.module import TemporalTransformer, _GatedLinear
from .compiling import compiled, is_block, is_compiled
from .packing import (
    can_pack,
    is_packed,
    pack_convolution,
    pack_gated,
    pack_linear,
    packed_layers,
    relay,
    relay_back,
    unpack,
)
from .resnet import FastResnet, fits
from .spatial import FastTransformer
from .temporal import FastTemporal
from .text_memory import TextMemory


def optimize(animated: AnimatedUNet, *, backend: str | None = None) -> AnimatedUNet:
    """The same model, the same numbers, faster and leaner on the device where it is.

    On the CPU weights are packed in place of the plain ones (see packing.py), and forwards that
    keep their work in the cache take over; elsewhere convolutions get channels-last weights. A call
    that could be asked for gradients runs the plain forwards. Merge adapters before: a packed
    weight refuses changes. `animated.deflate()` and `restore` undo it.

    backend: one of torch.compile's, usually "inductor", which makes the blocks' forwards then, on
    every device; see compiling.py. Results differ in the last bits from those without it.
    """
    if _applied(animated) is not None:
        return animated
    done = Applied(backend=backend)
    animated.__dict__["applied_speed"] = done
    animated.at_deflate(lambda: restore(animated))
    _apply(animated.unet, done)
    _apply(animated.motion, done)
    if done.on_cpu and backend is None:
        see = animated.unet.register_forward_pre_hook(done.text.see_states, with_kwargs=True)
        done.handles.append(see)
        done.replace(animated, FastAnimated(animated, done.text).forward)
    return animated


def optimize_vae(vae: AutoencoderKL) -> AutoencoderKL:
    """The same for a VAE in fp32; in half precision it must stay free to move to fp32."""
    if _applied(vae) is None and vae.dtype == torch.float32:
        done = Applied()
        vae.__dict__["applied_speed"] = done
        _apply(vae, done)
    return vae


def restore(model: nn.Module) -> None:
    """Take everything off again; the model is as it was, bit for bit."""
    done = _applied(model)
    if done is not None:
        del model.__dict__["applied_speed"]
        done.undo()


def suspend(animated: AnimatedUNet) -> Callable[[], None]:
    """Run the plain forwards, which call every hook, until the result is called."""
    done = _applied(animated)
    if done is None:
        return lambda: None
    restore(animated)

    def resume() -> None:
        optimize(animated, backend=done.backend)

    return resume


def kernels_of(model: nn.Module) -> str:
    """What computes a model, for its results' last bits depend on it: packed, compiled or plain."""
    if any(is_packed(module) for module in model.modules()):
        return "packed"
    return "compiled" if any(is_compiled(module) for module in model.modules()) else "plain"


@dataclass
class FastAnimated:
    """The forward of an animated model: tells the cross-attentions which text is in use."""

    animated: AnimatedUNet
    text: TextMemory

    def forward(
        self,
        sample: Tensor,
        timestep: int | Tensor,
        text: Tensor,
        conditions: Conditions | None = None,
    ) -> Tensor:
        """As the animated model's own."""
        kept = self.animated
        if torch.is_grad_enabled() and _learns(kept, sample, text, conditions):
            return type(kept).forward(kept, sample, timestep, text, conditions)
        self.text.begin(text, sample.shape[2])
        try:
            with torch.no_grad():
                return type(kept).forward(kept, sample, timestep, text, conditions)
        finally:
            self.text.end()


@dataclass
class Applied:
    """What was done to one model."""

    text: TextMemory = field(default_factory=TextMemory)
    backend: str | None = None
    """Of torch.compile, where it makes the forwards."""
    on_cpu: bool = False
    modules: list[nn.Module] = field(default_factory=list)
    """Those whose forward was replaced."""
    relaid: list[nn.Conv2d] = field(default_factory=list)
    """Those whose weight has become channels-last."""
    packed: list[nn.Module] = field(default_factory=list)
    handles: list[RemovableHandle] = field(default_factory=list)

    def replace(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        """Put a forward in front of a module's own."""
        module.__dict__["forward"] = forward
        self.modules.append(module)

    def undo(self) -> None:
        """Everything as it was."""
        while self.handles:
            self.handles.pop().remove()
        for module in self.modules:
            module.__dict__.pop("forward", None)
        for layer in self.packed:
            if is_packed(layer):
                unpack(layer)
        for layer in self.relaid:
            relay_back(layer)
        self.text.forget()


def _apply(model: nn.Module, done: Applied) -> None:
    """Every layer under a model that nobody trains."""
    first = next(model.parameters())
    done.on_cpu = first.device.type == "cpu"
    if any(parameter.requires_grad for parameter in model.parameters()):
        return
    packs = can_pack(first) and done.backend is None
    for module in list(model.modules()):
        _apply_to(module, done, packs)
    if packs:
        done.packed += packed_layers(model)


def _apply_to(module: nn.Module, done: Applied, packs: bool) -> None:
    if isinstance(module, (GEGLU, _GatedLinear)) and packs:
        pack_gated(module.proj)
    elif type(module) is nn.Linear and packs and not is_packed(module):
        pack_linear(module)
    elif type(module) is nn.Conv2d:
        if not (packs and pack_convolution(module)):
            relay(module)
            done.relaid.append(module)
    elif done.backend is not None:
        if is_block(module):
            done.replace(module, compiled(module.forward, done.backend))
    elif not done.on_cpu:
        return
    elif isinstance(module, TemporalTransformer):
        done.replace(module, FastTemporal(module).forward)
    elif type(module) is Transformer2DModel:
        done.replace(module, FastTransformer(module, done.text).forward)
    elif type(module) is ResnetBlock2D and fits(module):
        done.replace(module, FastResnet(module).forward)


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
