"""Moves of the camera: the MotionLoRA of each."""

from pathlib import Path

from ..errors import CheckpointError
from ..jobs import Adapter
from ..jobs.camera import Camera, CameraMove, Move
from ..motion import MotionConfig

_HUB = "guoyww/animatediff"
_STEMS: dict[Move, str] = {
    "zoom-in": "v2_lora_ZoomIn",
    "zoom-out": "v2_lora_ZoomOut",
    "pan-left": "v2_lora_PanLeft",
    "pan-right": "v2_lora_PanRight",
    "tilt-up": "v2_lora_TiltUp",
    "tilt-down": "v2_lora_TiltDown",
    "roll-clockwise": "v2_lora_RollingClockwise",
    "roll-anticlockwise": "v2_lora_RollingAnticlockwise",
}


def motion_loras_of(camera: Camera, config: MotionConfig, module: str) -> tuple[Adapter, ...]:
    """The moves as settings of motion_loras.

    Raises CheckpointError if the motion module, named `module`, is not v2, or if the folder lacks
    a file.
    """
    if camera.moves and config.version != "v2":
        raise CheckpointError(
            f"camera: the moves are MotionLoRAs for v2 motion modules, but {module} is "
            f"{config.version}; use a v2 module (preset sd15-v2), or leave camera out"
        )
    return tuple(Adapter(path=_file(one, camera.folder), scale=one.scale) for one in camera.moves)


def _file(move: CameraMove, folder: str | None) -> str:
    stem = _STEMS[move.move]
    if folder is None:
        return f"{_HUB}/{stem}.ckpt"
    for suffix in (".ckpt", ".safetensors"):
        path = Path(folder).expanduser() / f"{stem}{suffix}"
        if path.is_file():
            return str(path)
    raise CheckpointError(
        f"{folder}: has no {stem}.ckpt (or .safetensors), the MotionLoRA of {move.move}; put it "
        f"there, or leave camera.folder out to fetch it from the hub ({_HUB})"
    )
