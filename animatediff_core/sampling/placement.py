"""A loaded model on its device, and its fallbacks to less memory."""

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch

from ..checkpoints.base_model import BaseModel
from ..conditions import LoadedModel
from ..motion import MotionModule, inflate
from ..planning.memory import FASTEST, MemorySettings, next_fallback
from .compiling import compile_model
from .offload import place


def _find_speed() -> ModuleType | None:
    """The package `speed`; without it every model runs the plain modules."""
    core = __package__.rpartition(".")[0]
    return import_module(f"{core}.speed") if find_spec(f"{core}.speed") else None


speed = _find_speed()


@dataclass(frozen=True)
class Placement:
    """Where and how a model runs."""

    device: torch.device
    dtype: torch.dtype
    memory: MemorySettings = FASTEST
    compiled: bool = False
    """Whether torch.compile makes the UNet's blocks, if their weights are on the device."""


class PlacedModel(LoadedModel):
    """A model on its device, ready to sample; OutOfMemoryError if it does not fit at all."""

    def __init__(
        self, base: BaseModel, motion: MotionModule, placement: Placement, *, offline: bool = False
    ) -> None:
        super().__init__(base, inflate(base.unet, motion), offline)
        self.placement = placement
        self._undo_compiling: Callable[[], None] | None = None
        self._settle()

    def use_less_memory(self) -> bool:
        """Fall back to the next, slower placement; False if there is none."""
        before = self.placement.memory
        if not self._fall_back():
            return False
        if self.placement.memory.offload != before.offload:
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
        memory = next_fallback(self.placement.memory, self.placement.device)
        if memory is None:
            return False
        self.placement = replace(self.placement, memory=memory)
        return True

    def _place(self) -> None:
        to = self.placement
        place(self.base, self.animated.motion, to.device, to.dtype, to.memory)
        if not to.memory.offload:
            self._accelerate()

    @property
    def kernels(self) -> str:
        """The way the model is computed, which the last bits of its clips depend on: fused,
        compiled or plain."""
        if self._undo_compiling is not None:
            return "compiled"
        return "plain" if speed is None else str(speed.kernels_of(self.animated))

    def run_plainly(self) -> Callable[[], None]:
        if self.kernels == "plain":
            return super().run_plainly()
        self._decelerate()
        return self._accelerate

    def _accelerate(self) -> None:
        """Compile the model, or put the forwards of `speed` in; on CUDA these are the fastest."""
        compiled = self.placement.compiled
        if speed is not None:
            compiled = compiled and not speed.has_kernels(self.device)
            speed.optimize(self.animated, fused=not compiled)
            speed.optimize_vae(self.base.vae)
        if compiled:
            self._undo_compiling = compile_model(self.animated)

    def _decelerate(self) -> None:
        """Put the plain modules back, bit for bit."""
        if self._undo_compiling is not None:
            self._undo_compiling()
            self._undo_compiling = None
        if speed is not None:
            speed.restore(self.animated)
            speed.restore(self.base.vae)

    def _unplace(self) -> None:
        """Put plain modules back into main memory, and free the device's memory."""
        self._decelerate()
        self.base.to("cpu", self.placement.dtype)
        self.animated.motion.to("cpu", self.placement.dtype)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
