"""LoRAs and MotionLoRAs: recognised and read from files, merged into weights."""

from .merge import apply_lora as apply_lora
from .merge import apply_loras as apply_loras
from .merge import apply_motion_lora as apply_motion_lora
