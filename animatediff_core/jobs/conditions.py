"""What a clip is led by besides its prompt: pictures and videos, and the models that read them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from .choices import one_of
from .kinds import Source

Fit = Literal["exact", "crop", "stretch"]
ByFrame = Mapping[int, Source]
"""Pictures by frame of the clip; -1 is the last one."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """A picture for every frame of the clip."""

    path: Source
    """A video, a folder of pictures in the order of their names, or one picture for all frames."""
    first: int = 0
    """Number of the picture that the clip begins with, 0 or more."""
    every: float = 1.0
    """How many pictures of the video or folder pass for one frame of the clip, above 0: 3 makes 8
    frames a second of 24."""
    fit: Fit = "exact"
    """exact: they must have the clip's size; crop: their largest middle part of its shape;
    stretch: as they are."""

    def __post_init__(self) -> None:
        one_of("pictures.fit", self.fit, Fit)
        if self.first < 0:
            raise ValueError(f"pictures.first must be 0 or more, got {self.first}")
        if self.every <= 0:
            raise ValueError(f"pictures.every must be above 0, got {self.every:g}")


@dataclass(frozen=True, kw_only=True)
class Canny:
    """Edges, computed from the pictures."""

    low: float = 100.0
    """Gradient from which on a point belongs to an edge that it touches, 0 or more; a step from
    black to white has 1020."""
    high: float = 200.0
    """Gradient from which on a point is an edge, low or more."""

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise ValueError(
                f"canny needs 0 <= low <= high, got low {self.low:g} and high {self.high:g}"
            )


@dataclass(frozen=True, kw_only=True)
class ControlNet:
    """A ControlNet with a picture for every frame."""

    _key: ClassVar[str] = "controlnets"

    path: Source
    """A diffusers folder or a single file, of the base model's family."""
    pictures: Pictures
    canny: Canny | None = None
    """Turns the pictures into edges first; true is the usual thresholds."""
    strength: float = 1.0
    """0 or more."""
    start: float = 0.0
    """Share of the steps before it acts, 0 to 1."""
    end: float = 1.0
    """Share of the steps after which it acts no more, above start."""
    weights: Mapping[int, float] | None = None
    """A further factor by frame, 0 or more, linear between the frames named."""

    def __post_init__(self) -> None:
        _check_share(self._key, self.strength, self.start, self.end)
        _check_weights(self._key, self.weights)


@dataclass(frozen=True, kw_only=True)
class T2IAdapter(ControlNet):
    """A T2I-Adapter with a picture for every frame, led as a ControlNet is."""

    _key: ClassVar[str] = "t2i_adapters"


@dataclass(frozen=True, kw_only=True)
class SparseControl:
    """A SparseCtrl encoder with pictures or scribbles at some frames."""

    path: Source
    """The official file or a diffusers folder, for RGB pictures or for scribbles."""
    pictures: ByFrame
    fit: Fit = "crop"
    """As in pictures of a ControlNet; the official code crops."""
    normalize: bool = False
    """Greys, stretched from black to white: for scribbles that are not quite so."""
    strength: float = 1.0
    """0 or more."""
    start: float = 0.0
    """Share of the steps before it acts, 0 to 1."""
    end: float = 1.0
    """Share of the steps after which it acts no more, above start."""

    def __post_init__(self) -> None:
        one_of("sparse_controls.fit", self.fit, Fit)
        _check_share("sparse_controls", self.strength, self.start, self.end)


@dataclass(frozen=True, kw_only=True)
class IPAdapter:
    """A picture as a prompt, or several that travel into each other."""

    path: Source
    """An IP-Adapter of the base model's family: plain, plus or full face."""
    pictures: ByFrame
    """From a frame on; between two of them their embeddings travel."""
    encoder: Source
    """The image encoder that it was trained with: a folder of CLIP's vision model, here or on the
    hub."""
    scale: float = 1.0
    """How strongly it acts beside the text, 0 or more."""
    weights: Mapping[int, float] | None = None
    """A further factor by frame, 0 or more, linear between the frames named."""

    def __post_init__(self) -> None:
        if self.scale < 0:
            raise ValueError(f"ip_adapters.scale must be 0 or more, got {self.scale:g}")
        _check_weights("ip_adapters", self.weights)


@dataclass(frozen=True, kw_only=True)
class Start:
    """A video that the clip is made from (video to video), or that it changes within a mask."""

    pictures: Pictures
    strength: float = 0.6
    """How far it may go from it: the share of the steps that run, above 0 up to 1."""
    mask: Pictures | None = None
    """White where the clip is made anew, black where the video stays."""

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise ValueError(f"start.strength must be above 0 and at most 1, got {self.strength:g}")


@dataclass(frozen=True, kw_only=True)
class Keyframes:
    """Pictures that frames of the clip are to be (image to video)."""

    pictures: ByFrame
    """By frame: {0: first.png}, or {0: first.png, -1: last.png}."""
    fit: Fit = "crop"
    strength: float = 1.0
    """Share of the steps that run, above 0 up to 1: below 1 all frames begin from the pictures."""

    def __post_init__(self) -> None:
        one_of("keyframes.fit", self.fit, Fit)
        if not 0 < self.strength <= 1:
            raise ValueError(
                f"keyframes.strength must be above 0 and at most 1, got {self.strength:g}"
            )


@dataclass(frozen=True, kw_only=True)
class Animate:
    """The picture that a PIA module animates."""

    picture: Source
    fit: Fit = "crop"
    motion: Literal["small", "medium", "large", "loop"] = "small"
    """How unlike the picture the frames become over the clip; loop returns to it."""

    def __post_init__(self) -> None:
        one_of("animate.fit", self.fit, Fit)


@dataclass(frozen=True, kw_only=True)
class Region:
    """A part of the picture with a prompt of its own; later ones lie in front."""

    prompt: Mapping[int, str]
    """Text from a frame on, as the job's own."""
    mask: Pictures
    """White where the prompt acts."""


@dataclass(frozen=True, kw_only=True)
class MotionStrength:
    """How strongly the motion module acts."""

    scale: float = 1.0
    """0 leaves the image model's frames to themselves, 1 is as trained; above 2 little holds."""
    blocks: Mapping[str, float] | None = None
    """A further factor by block of the UNet: down_blocks.0, mid_block, up_blocks.2, ..."""
    frames: Mapping[int, float] | None = None
    """A further factor by frame, linear between the frames named; -1 is the last."""


@dataclass(frozen=True, kw_only=True)
class MotionPositions:
    """Where the frames stand for the motion module: frame n at position offset + stretch * n,
    counted within a window where the clip is longer than one."""

    stretch: float = 1.0
    """Above 0: below 1 the frames lie nearer together in time, so that things move less from one to
    the next; above 1 further apart."""
    offset: float = 0.0
    """0 or more."""

    def __post_init__(self) -> None:
        if self.stretch <= 0:
            raise ValueError(f"motion_positions.stretch must be above 0, got {self.stretch:g}")
        if self.offset < 0:
            raise ValueError(f"motion_positions.offset must be 0 or more, got {self.offset:g}")


def _check_share(key: str, strength: float, start: float, end: float) -> None:
    if strength < 0:
        raise ValueError(f"{key}.strength must be 0 or more, got {strength:g}")
    if not 0 <= start < end <= 1:
        raise ValueError(
            f"{key} must have 0 <= start < end <= 1, got start {start:g} and end {end:g}"
        )


def _check_weights(key: str, weights: Mapping[int, float] | None) -> None:
    for frame, weight in (weights or {}).items():
        if weight < 0:
            raise ValueError(f"{key}.weights must be 0 or more, got {weight:g} for frame {frame}")
