"""A loaded model where it runs, and brought there anew with less memory when it must."""

import gc
from dataclasses import dataclass, replace

import torch

from ..checkpoints.base_model import BaseModel
from ..errors import AnimateDiffError
from ..motion import AnimatedUNet, MotionModule, inflate
from ..speed import optimize, optimize_vae, restore
from ..speed.compiling import prepare_compiling
from ..speed.memory import PLENTY, Thrift, leaner, place


@dataclass(frozen=True)
class Placement:
    """Where and how a model runs."""

    device: torch.device
    dtype: torch.dtype
    thrift: Thrift = PLENTY
    compiled: bool = False
    """Whether torch.compile makes the UNet's blocks, where their weights are on the device."""


def check_compiling(device: torch.device, thrift: Thrift) -> None:
    """AnimateDiffError where blocks cannot be compiled for it."""
    if thrift.offload:
        raise AnimateDiffError(
            "--compile keeps the weights on the GPU and --low-vram does not; leave one of them out"
        )
    prepare_compiling(device)


class PlacedModel:
    """A model in its place: `base` and `animated` are ready to sample."""

    animated: AnimatedUNet

    def __init__(self, base: BaseModel, motion: MotionModule, placing: Placement) -> None:
        self.base = base
        self.motion = motion
        self.placing = placing
        self._settle()

    def go_leaner(self) -> bool:
        """Place it with less memory, slower; False where there is no leaner way."""
        before = self.placing.thrift
        if not self._next_rung():
            return False
        if self.placing.thrift.offload != before.offload:
            self._bring_home()
        try:
            self._settle()
        except torch.OutOfMemoryError:
            return False
        return True

    def _settle(self) -> None:
        """Place it, as lean as it must be; OutOfMemoryError where it does not fit at all."""
        while True:
            try:
                self._place()
                return
            except (torch.OutOfMemoryError, MemoryError):
                pass  # what the error's frames hold must go first
            if not self._next_rung():
                raise torch.OutOfMemoryError
            self._bring_home()

    def _next_rung(self) -> bool:
        rung = leaner(self.placing.thrift, self.placing.device)
        if rung is None:
            return False
        self.placing = replace(self.placing, thrift=rung)
        return True

    def _place(self) -> None:
        placing = self.placing
        place(self.base, self.motion, placing.device, placing.dtype, placing.thrift)
        if not hasattr(self, "animated"):
            self.animated = inflate(self.base.unet, self.motion)
        if not placing.thrift.offload:
            optimize(self.animated, backend="inductor" if placing.compiled else None)
            optimize_vae(self.base.vae)

    def _bring_home(self) -> None:
        """Everything plain and in main memory, and what the device held is free again."""
        if hasattr(self, "animated"):
            restore(self.animated)
        restore(self.base.vae)
        self.base.to("cpu", self.placing.dtype)
        self.motion.to("cpu", self.placing.dtype)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
