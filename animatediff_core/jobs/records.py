"""A job: everything that decides one clip, fully resolved."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from annotated_types import Ge, Le
from pydantic import PrivateAttr
from typing_extensions import Self

from ..errors import Problem
from .camera import Camera
from .choices import BetaSchedule, PredictionType, TimestepSpacing, Travel
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
from .kinds import (
    NO_FLAG,
    Count,
    Flag,
    KeyFrames,
    Number,
    Seed,
    Share,
    Source,
    Strength,
    from_start,
)
from .naming import output_name
from .output import Output
from .record import Record, is_key_frames, kinds_of
from .sampling import FreeInit, Noise, Upscale, Window
from .travel_text import Prompt

MODEL_FIELDS = ("base", "variant", "motion", "motion_version", "unet", "vae", "prediction_type",
                "loras", "motion_loras", "camera", "embeddings")  # fmt: skip
"""Settings of a job that say which model it needs."""


class Adapter(Record):
    """A LoRA or MotionLoRA and how strongly it is merged."""

    path: Source
    """A file, local or on the hub."""
    scale: Number = 1.0
    """Factor on its change of the weights, any number; 0 is off."""
    weights: KeyFrames[Number] | None = None
    """A further factor by frame for a LoRA, linear between key frames. It is then not merged, and
    its layers of the text encoders are left out."""


class Embedding(Record):
    """A textual inversion."""

    path: Source
    """A file, local or on the hub."""
    word: str | None = None
    """Its placeholder token in prompts; default: the one in the file, else the file's name."""


class Job(Record):
    """One clip. Paths are as a command in the working folder would need them."""

    name: str
    """Start of the file's name; default: from the prompt."""
    prompt: Prompt
    """Positive prompt: one text, or texts by frame between which the embedding is interpolated."""
    negative_prompt: Prompt = {0: ""}
    """Negative prompt, in the same form."""
    travel: Travel = "linear"
    """The way from one prompt's embedding to the next one's."""
    travel_loop: Flag = False
    """Whether the last prompt, or image of an IP-Adapter, travels back to the first one around the
    clip's end."""
    clip_skip: Count = 1
    """From which layer of the text encoder the embedding comes, counted from its end: 1 is the
    last (SDXL: the second last, as it was trained), 2 the one before it."""
    seed: Seed
    """0 to 2**64-1; a list makes a job each; -1, null or none draws one."""
    base: Source = "bundled:tiny"
    """Base model: preset's, diffusers folder, checkpoint file or hub id."""
    variant: str | None = None
    """Which weights of the base model's folder or hub id, for instance fp16; default: the plain
    ones."""
    motion: Source | None = None
    """Motion module: file, folder, or ORG/REPOSITORY/FILE on the hub; default: that of the base
    model."""
    motion_version: str | None = None
    """Version of the motion module (v1, v2, v3, …) if its file does not identify it."""
    unet: Source | None = None
    """UNet to use instead of the base model's: a file or folder of a UNet alone (SDXL-Lightning,
    LCM)."""
    vae: Source | None = None
    """VAE to use instead of the base model's."""
    prediction_type: PredictionType | None = None
    """Prediction type of the base model; default: as its files say, else epsilon (SD2 checkpoint
    files: v_prediction)."""
    loras: tuple[Adapter, ...] = ()
    """LoRA, merged into the base model."""
    motion_loras: tuple[Adapter, ...] = ()
    """MotionLoRA, merged into the motion module."""
    camera: Camera = Camera()
    """How the camera moves."""
    embeddings: tuple[Embedding, ...] = ()
    """Textual inversion."""
    frames: Count = 16
    """Length of the clip."""
    width: Count = 512
    """Pixels."""
    height: Count = 512
    """Pixels."""
    window: Window | None = None
    """Context windows; default: the whole clip at once."""
    noise: Noise = Noise()
    """The initial noise."""
    free_init: FreeInit | None = None
    """FreeInit; default: off."""
    upscale: Upscale | None = None
    """A second pass at a larger size; default: off."""
    steps: Count = 25
    """Denoising steps."""
    guidance_scale: Strength = 7.5
    """Classifier-free guidance scale; 1 is off."""
    guidance_schedule: Mapping[Share, Strength] | None = None
    """Guidance scale by share of the steps done, linear between; in place of guidance_scale."""
    guidance_rescale: Share = 0.0
    """How far the guided prediction's contrast is brought back to the unguided one's (arXiv
    2305.08891, section 3.4)."""
    guidance_interval: tuple[Share, Share] = (0.0, 1.0)
    """Shares of the steps between which guidance acts (arXiv 2404.07724)."""
    scheduler: str = "ddim"
    """Sampler, for instance ddim or euler."""
    fast: Annotated[int, Ge(0), Le(3), NO_FLAG] = 0
    """Trades quality for speed, 0 (the exact clip) to 3: in so many steps the model does not run,
    and its last output is used again; see docs/speed.md."""
    betas: tuple[Number, Number, BetaSchedule] | None = None
    """Noise schedule: start, end (above 0, below 1) and diffusers' name for the way between;
    default: that of the motion module's training."""
    timestep_spacing: TimestepSpacing | None = None
    """How the steps are spaced over the noise schedule: leading, or trailing for distilled UNets
    (SDXL-Lightning); default: as the motion module was trained."""
    controlnets: tuple[ControlNet, ...] = ()
    """ControlNets, which add up."""
    sparse_controls: tuple[SparseControl, ...] = ()
    """SparseCtrl encoders, which add up."""
    t2i_adapters: tuple[T2IAdapter, ...] = ()
    """T2I-Adapters, which add up."""
    ip_adapters: tuple[IPAdapter, ...] = ()
    """IP-Adapters, which add up."""
    start: Start | None = None
    """A video to begin from."""
    keyframes: Keyframes | None = None
    """Images that frames are to be."""
    animate: Animate | None = None
    """The image that a PIA module animates."""
    regions: tuple[Region, ...] = ()
    """Parts of the frame with prompts of their own."""
    motion_strength: MotionStrength = MotionStrength()
    """How strongly the motion module acts."""
    motion_positions: MotionPositions = MotionPositions()
    """Positions of the frames for the motion module."""
    output: Output = Output()
    """How the clip is written."""
    _origin: str = PrivateAttr("")

    @property
    def origin(self) -> str:
        """File and job that it was read from, as messages name them."""
        return self._origin

    def __eq__(self, other: object) -> bool:
        """Whether both make the same clip, wherever they were read from."""
        return isinstance(other, Job) and dict(self) == dict(other)

    def come_from(self, origin: str) -> Self:
        """The job with its `origin`."""
        self._origin = origin
        return self

    @property
    def final_size(self) -> tuple[int, int]:
        """Width and height of the clip in pixels, after `upscale`."""
        scale = 1.0 if self.upscale is None else self.upscale.scale
        return round(self.width * scale), round(self.height * scale)

    def misfits(self) -> Iterator[Problem]:
        counted, problems = _counted(self, self.frames)
        self.__dict__.update(dict(counted))  # before anybody else has the job
        yield from problems
        seeds = len(self.noise.frame_seeds)
        if seeds not in (0, self.frames):
            message = f"has {seeds} seeds, but the clip {self.frames} frames"
            yield Problem(message, "noise.frame_seeds")
        for i, lora in enumerate(self.motion_loras):
            if lora.weights is not None:
                message = "is for loras alone; a MotionLoRA is merged into the motion module"
                yield Problem(message, f"motion_loras[{i}].weights")
        start, end = self.guidance_interval
        if start >= end:
            yield Problem(f"must have start below end, got {[start, end]}", "guidance_interval")
        if self.betas is not None and not 0 < self.betas[0] <= self.betas[1] < 1:
            yield Problem(f"must have 0 < start <= end < 1, got {list(self.betas)}", "betas")
        try:
            output_name(self)
        except ValueError as error:
            yield Problem(str(error), "output.name")


def _counted(value: Any, frames: int, key: str = "") -> tuple[Any, list[Problem]]:
    """A record with the key frames in it counted from the clip's start; and what is wrong."""
    if isinstance(value, tuple):
        pairs = [_counted(item, frames, f"{key}[{i}]") for i, item in enumerate(value)]
        return tuple(item for item, _ in pairs), [one for _, found in pairs for one in found]
    if not isinstance(value, Record):
        return value, []
    changes: dict[str, Any] = {}
    problems = []
    for name, kind in kinds_of(type(value)).items():
        here, old = f"{key}.{name}".removeprefix("."), getattr(value, name)
        if is_key_frames(kind) and old is not None:
            try:
                changes[name] = from_start(old, frames)
            except ValueError as error:
                problems.append(Problem(str(error), here))
            continue
        changes[name], found = _counted(old, frames, here)
        problems += found
    return value.model_copy(update=changes), problems
