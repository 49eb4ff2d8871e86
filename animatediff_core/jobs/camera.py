"""Camera moves by name; each stands for an official MotionLoRA."""

from typing import Literal

from .kinds import Number, Source
from .record import Record

Move = Literal["zoom-in", "zoom-out", "pan-left", "pan-right", "tilt-up", "tilt-down",
               "roll-clockwise", "roll-anticlockwise"]  # fmt: skip


class CameraMove(Record):
    """One camera move and how strong it is."""

    move: Move
    """Direction of the move."""
    scale: Number = 1.0
    """How strongly, any number; 0 is off."""


class Camera(Record):
    """How the camera moves: official MotionLoRAs by name, for a v2 motion module."""

    moves: tuple[CameraMove, ...] = ()
    """Camera move for a v2 motion module; several add up."""
    folder: Source | None = None
    """Folder of the files (v2_lora_ZoomIn.ckpt and so on); default: the hub, guoyww/animatediff."""
