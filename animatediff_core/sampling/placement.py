"""A loaded model on its device, and its fallbacks to less memory."""

import gc
from dataclasses import dataclass, replace

import torch

from ..checkpoints.base_model import BaseModel
from ..conditions import LoadedModel
from ..errors import AnimateDiffError
from ..motion import MotionModule, inflate
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
    """Whether torch.compile makes the UNet's blocks, if their weights are on the device."""


def check_compiling(device: torch.device, thrift: Thrift) -> None:
    """AnimateDiffError if blocks cannot be compiled for it."""
    if thrift.offload:
        raise AnimateDiffError(
            "--compile keeps the weights on the GPU and --low-vram does not; leave one of them out"
        )
    prepare_compiling(device)


class PlacedModel(LoadedModel):
    """A model on its device, ready to sample; OutOfMemoryError if it does not fit at all."""

    def __init__(
        self, base: BaseModel, motion: MotionModule, placement: Placement, *, offline: bool = False
    ) -> None:
        super().__init__(base, inflate(base.unet, motion), offline)
        self.placement = placement
        self._settle()

    def use_less_memory(self) -> bool:
        """Fall back to the next, slower placement; False if there is none."""
        before = self.placement.thrift
        if not self._fall_back():
            return False
        if self.placement.thrift.offload != before.offload:
            self._unplace()
        try:
            self._settle()
        except torch.OutOfMemoryError:
            return False
        return True

    def _settle(self) -> None:
        """Place it, with as many fallbacks as it needs."""
        while True:
            try:
                self._place()
                return
            except (torch.OutOfMemoryError, MemoryError):
                pass  # the frames of the error must go first
            if not self._fall_back():
                raise torch.OutOfMemoryError
            self._unplace()

    def _fall_back(self) -> bool:
        thrift = leaner(self.placement.thrift, self.placement.device)
        if thrift is None:
            return False
        self.placement = replace(self.placement, thrift=thrift)
        return True

    def _place(self) -> None:
        to = self.placement
        place(self.base, self.animated.motion, to.device, to.dtype, to.thrift)
        if not to.thrift.offload:
            optimize(self.animated, backend="inductor" if to.compiled else None)
            optimize_vae(self.base.vae)

    def _unplace(self) -> None:
        """Back to plain modules in main memory, and free the device's memory."""
        restore(self.animated)
        restore(self.base.vae)
        self.base.to("cpu", self.placement.dtype)
        self.animated.motion.to("cpu", self.placement.dtype)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
