"""The thin core: inflates Stable Diffusion UNets with motion modules, trains and samples them.

Public names load on first use, so that importing an error class costs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .adapters.lora import apply_lora, apply_motion_lora
    from .checkpoints.motion_module import load_motion_module, save_motion_module
    from .diffusion.denoise import denoise
    from .diffusion.loss import motion_loss
    from .diffusion.schedules import make_scheduler
    from .errors import AnimateDiffError
    from .jobs import Job, load_prompt_file
    from .motion import AnimatedUNet, Conditions, MotionConfig, MotionModule, Positions, inflate
    from .runs.generate import Result, generate
    from .speed import optimize

_HOMES = {
    "AnimateDiffError": "errors",
    "AnimatedUNet": "motion",
    "Conditions": "motion",
    "Job": "jobs",
    "MotionConfig": "motion",
    "MotionModule": "motion",
    "Positions": "motion",
    "Result": "runs.generate",
    "apply_lora": "adapters.lora",
    "apply_motion_lora": "adapters.lora",
    "denoise": "diffusion.denoise",
    "generate": "runs.generate",
    "inflate": "motion",
    "load_motion_module": "checkpoints.motion_module",
    "load_prompt_file": "jobs",
    "make_scheduler": "diffusion.schedules",
    "motion_loss": "diffusion.loss",
    "optimize": "speed",
    "save_motion_module": "checkpoints.motion_module",
}

__all__ = [
    "AnimateDiffError",
    "AnimatedUNet",
    "Conditions",
    "Job",
    "MotionConfig",
    "MotionModule",
    "Positions",
    "Result",
    "apply_lora",
    "apply_motion_lora",
    "denoise",
    "generate",
    "inflate",
    "load_motion_module",
    "load_prompt_file",
    "make_scheduler",
    "motion_loss",
    "optimize",
    "save_motion_module",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
