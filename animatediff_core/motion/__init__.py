"""The paper: the motion module, and how an image UNet takes it in."""

from .config import LINEAR_BETAS, VERSIONS, Betas, MotionConfig, for_unet
from .inflation import AnimatedUNet, Conditions, added_conditions, inflate
from .module import MotionModule

__all__ = [
    "added_conditions",
    "LINEAR_BETAS",
    "VERSIONS",
    "AnimatedUNet",
    "Betas",
    "Conditions",
    "MotionConfig",
    "MotionModule",
    "for_unet",
    "inflate",
]
