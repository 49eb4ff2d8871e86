"""A job: everything that decides one clip, fully resolved."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .camera import Camera
from .choices import one_of
from .conditions import (
    Animate,
    ControlNet,
    IPAdapter,
    Keyframes,
    MotionPositions,
    MotionStrength,
    Region,
    SparseControl,
    Start,
    T2IAdapter,
)
from .kinds import Source
from .naming import output_name
from .output import Output
from .sampling import FreeInit, Noise, Upscale, Window

Travel = Literal["linear", "slerp"]
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")

MODEL_FIELDS = ("base", "variant", "motion", "motion_version", "vae", "prediction_type", "loras",
                "motion_loras", "camera", "embeddings")  # fmt: skip
"""A job's fields that say which model it needs."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A LoRA or MotionLoRA and how strongly it is merged."""

    path: Source
    scale: float = 1.0
    """Factor on its change of the weights, any number; 0 is off."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One clip. Paths are as a command in the working folder would need them."""

    name: str
    """Start of the file's name."""
    prompt: Mapping[int, str]
    """Text from a frame on, always with one for frame 0; several travel into each other."""
    negative_prompt: Mapping[int, str] = field(default_factory=lambda: {0: ""})
    """What not to show, in the same form."""
    travel: Travel = "linear"
    """The way from one prompt's embedding to the next one's."""
    clip_skip: int = 1
    """From which layer of the text encoder the embedding comes, counted from its end: 1 is the
    last (SDXL: the second last, as it was trained), 2 the one before it."""
    seed: int
    """0..2**64-1."""
    base: Source = "bundled:tiny"
    variant: str | None = None
    """Which weights of a base model's folder or hub id: fp16, for instance; None the plain ones."""
    motion: Source | None = None
    """Motion module; None takes the one that belongs to the base model."""
    motion_version: str | None = None
    """Version of the motion module where its content cannot tell."""
    vae: Source | None = None
    prediction_type: str | None = None
    """epsilon, v_prediction or sample; None is what the base model's files say."""
    loras: tuple[Adapter, ...] = ()
    motion_loras: tuple[Adapter, ...] = ()
    camera: Camera = field(default_factory=Camera)
    embeddings: tuple[Source, ...] = ()
    frames: int = 16
    width: int = 512
    """Pixels."""
    height: int = 512
    """Pixels."""
    window: Window | None = None
    """None is the whole clip at once."""
    noise: Noise = field(default_factory=Noise)
    free_init: FreeInit | None = None
    upscale: Upscale | None = None
    steps: int = 25
    guidance_scale: float = 7.5
    """Classifier-free guidance; 1 is off."""
    guidance_schedule: Mapping[float, float] | None = None
    """Guidance scale by share of the steps done, 0 to 1, linear between; in place of
    guidance_scale."""
    guidance_rescale: float = 0.0
    """How far the guided prediction's contrast is brought back to the unguided one's, 0 to 1
    (arXiv 2305.08891, section 3.4)."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Shares of the steps between which guidance acts (arXiv 2404.07724)."""
    scheduler: str = "ddim"
    fast: int = 0
    """Quicker for a price, 0 (the exact clip) to 3: in so many steps the model does not run, and
    what it last said is used again."""
    betas: tuple[float, float, str] | None = None
    """Noise schedule: start, end (above 0, below 1) and diffusers' name for the way between;
    None is what the motion module was trained with."""
    controlnets: tuple[ControlNet, ...] = ()
    sparse_controls: tuple[SparseControl, ...] = ()
    t2i_adapters: tuple[T2IAdapter, ...] = ()
    ip_adapters: tuple[IPAdapter, ...] = ()
    start: Start | None = None
    keyframes: Keyframes | None = None
    animate: Animate | None = None
    regions: tuple[Region, ...] = ()
    motion_strength: MotionStrength = field(default_factory=MotionStrength)
    motion_positions: MotionPositions = field(default_factory=MotionPositions)
    output: Output = field(default_factory=Output)

    def __post_init__(self) -> None:
        for key in ("prompt", "negative_prompt"):
            texts = getattr(self, key)
            if 0 not in texts:
                raise ValueError(f"{key} must have a text for frame 0")
            for frame in texts:
                if not 0 <= frame < max(self.frames, 1):
                    raise ValueError(f"{key} names frame {frame} but the clip has {self.frames}")
        one_of("travel", self.travel, Travel)
        if self.clip_skip < 1:
            raise ValueError(f"clip_skip must be 1 (none) or more, got {self.clip_skip}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be 0 to 2**64-1, got {self.seed}")
        for name in ("frames", "width", "height", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.fast not in range(4):
            raise ValueError(f"fast must be 0 (exact) to 3 (quickest), got {self.fast}")
        if self.guidance_scale < 0:
            raise ValueError(f"guidance_scale must be 0 or more, got {self.guidance_scale:g}")
        self._check_guidance()
        if self.noise.frame_seeds and len(self.noise.frame_seeds) != self.frames:
            raise ValueError(
                f"noise.frame_seeds has {len(self.noise.frame_seeds)} seeds, but the clip "
                f"{self.frames} frames"
            )
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

        output_name(self)

    def _check_guidance(self) -> None:
        if not 0 <= self.guidance_rescale <= 1:
            raise ValueError(f"guidance_rescale must be 0 to 1, got {self.guidance_rescale:g}")
        start, end = self.guidance_interval
        if not 0 <= start < end <= 1:
            raise ValueError(
                f"guidance_interval must be [start, end] with 0 <= start < end <= 1, "
                f"got [{start:g}, {end:g}]"
            )
        for share, scale in (self.guidance_schedule or {}).items():
            if not 0 <= share <= 1 or scale < 0:
                raise ValueError(
                    "guidance_schedule must map shares 0 to 1 to scales of 0 or more, "
                    f"got {share:g}: {scale:g}"
                )
