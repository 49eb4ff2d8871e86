"""A job: everything that decides one clip, fully resolved."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

Format = Literal["gif", "mp4"]
FORMATS: tuple[str, ...] = get_args(Format)
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A LoRA or MotionLoRA and how strongly it is merged."""

    path: str
    scale: float = 1.0
    """Factor on its change of the weights, any number; 0 is off."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """How the clip is written."""

    format: Format = "gif"
    fps: float = 8.0
    """Frames a second, above 0; GIF shows 50 at most."""
    crf: int = 18
    """H.264 quality, 0 (lossless) to 51 (worst); MP4 only."""

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"output.format must be {' or '.join(FORMATS)}, got {self.format!r}")
        if not 0 < self.fps <= (50 if self.format == "gif" else 240):
            most = "50 (GIF can show no more)" if self.format == "gif" else "240"
            raise ValueError(f"output.fps must be above 0 and at most {most}, got {self.fps:g}")
        if not 0 <= self.crf <= 51:
            raise ValueError(f"output.crf must be 0 to 51, got {self.crf}")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One clip. Paths are as a command in the working folder would need them."""

    name: str
    """Start of the file's name."""
    prompt: Mapping[int, str]
    """Text from a frame on, always with one for frame 0; several travel into each other."""
    negative_prompt: str = ""
    seed: int
    """0..2**64-1."""
    base: str = "bundled:tiny"
    variant: str | None = None
    """Which weights of a base model's folder or hub id: fp16, for instance; None the plain ones."""
    motion: str | None = None
    """Motion module; None takes the one that belongs to the base model."""
    motion_version: str | None = None
    """Version of the motion module where its content cannot tell."""
    vae: str | None = None
    prediction_type: str | None = None
    """epsilon, v_prediction or sample; None is what the base model's files say."""
    loras: tuple[Adapter, ...] = ()
    motion_loras: tuple[Adapter, ...] = ()
    embeddings: tuple[str, ...] = ()
    frames: int = 16
    width: int = 512
    """Pixels."""
    height: int = 512
    """Pixels."""
    steps: int = 25
    guidance_scale: float = 7.5
    """Classifier-free guidance; 1 is off."""
    scheduler: str = "ddim"
    betas: tuple[float, float, str] | None = None
    """Noise schedule: start, end (above 0, below 1) and diffusers' name for the way between;
    None is what the motion module was trained with."""
    output: Output = field(default_factory=Output)

    def __post_init__(self) -> None:
        if 0 not in self.prompt:
            raise ValueError("prompt must have a text for frame 0")
        for frame in self.prompt:
            if not 0 <= frame < max(self.frames, 1):
                raise ValueError(f"prompt names frame {frame} but the clip has {self.frames}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be 0 to 2**64-1, got {self.seed}")
        for name in ("frames", "width", "height", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.guidance_scale < 0:
            raise ValueError(f"guidance_scale must be 0 or more, got {self.guidance_scale:g}")
        if self.prediction_type not in (None, *PREDICTION_TYPES):
            raise ValueError(
                f"prediction_type must be {' or '.join(PREDICTION_TYPES)}, "
                f"got {self.prediction_type!r}"
            )
        if self.betas is not None:
            start, end, schedule = self.betas
            if schedule not in BETA_SCHEDULES or not 0 < start <= end < 1:
                raise ValueError(
                    f"betas must be start, end and one of {', '.join(BETA_SCHEDULES)}, with "
                    f"0 < start <= end < 1, got {list(self.betas)}"
                )
