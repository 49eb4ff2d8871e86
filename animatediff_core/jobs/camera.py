"""Moves of the camera by name: what each stands for among the official MotionLoRAs."""

from dataclasses import dataclass
from typing import Literal

from .choices import one_of
from .kinds import Source

Move = Literal["zoom-in", "zoom-out", "pan-left", "pan-right", "tilt-up", "tilt-down",
               "roll-clockwise", "roll-anticlockwise"]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CameraMove:
    """One move, by the official MotionLoRA for it."""

    move: Move
    scale: float = 1.0
    """How strongly, any number; 0 is off."""

    def __post_init__(self) -> None:
        one_of("camera.moves.move", self.move, Move)


@dataclass(frozen=True, kw_only=True)
class Camera:
    """How the camera moves: MotionLoRAs by name, for a v2 motion module."""

    moves: tuple[CameraMove, ...] = ()
    """One or several, which add up."""
    folder: Source | None = None
    """Where the files lie (v2_lora_ZoomIn.ckpt and so on); none is the hub, guoyww/animatediff."""
