"""The paper: the motion module, and how an image UNet takes it in."""

from .conditions import Conditions, added_conditions
from .config import LINEAR_BETAS, VERSIONS, Betas, MotionConfig, for_unet
from .hooks import CallState
from .inflation import AnimatedUNet, inflate
from .module import MotionModule, Positions

__all__ = [
    "LINEAR_BETAS",
    "VERSIONS",
    "AnimatedUNet",
    "Betas",
    "CallState",
    "Conditions",
    "MotionConfig",
    "MotionModule",
    "Positions",
    "added_conditions",
    "for_unet",
    "inflate",
]
