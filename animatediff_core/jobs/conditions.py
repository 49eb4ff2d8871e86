"""Conditioning inputs other than the prompt: images, videos and the models that read them."""

from collections.abc import Iterator, Mapping
from typing import Literal

from ..errors import Problem
from .choices import Fit
from .kinds import Flag, Index, KeyFrames, Number, Positive, Share, ShareOfSteps, Source, Strength
from .record import Record
from .travel_text import Prompt


class Images(Record):
    """An image for every frame of the clip."""

    path: Source
    """A video, a folder of images in the order of their names, or one image for all frames."""
    first: Index = 0
    """Number of the image that the clip begins with."""
    every: Positive = 1.0
    """Images of the video or folder for each frame of the clip: 3 makes 8 frames a second of 24."""
    fit: Fit = "exact"
    """exact: they must have the clip's size; crop: the largest middle part of its shape; stretch:
    the whole image."""


class Canny(Record):
    """Edges, computed from the images."""

    low: Strength = 100.0
    """Gradient from which a point belongs to an edge that it touches; a step from black to white
    has 1020."""
    high: Strength = 200.0
    """Gradient from which a point is an edge, low or more."""

    def misfits(self) -> Iterator[Problem]:
        if self.low > self.high:
            yield Problem(f"must be low {self.low:g} or more, got {self.high:g}", "high")


class _Limited(Record):
    """A condition that acts in a part of the steps."""

    strength: Strength = 1.0
    """How strongly it acts; 0 is off."""
    start: Share = 0.0
    """Share of the steps before it acts."""
    end: Share = 1.0
    """Share of the steps after which it no longer acts, above start."""

    def misfits(self) -> Iterator[Problem]:
        if self.start >= self.end:
            yield Problem(f"must be above start {self.start:g}, got {self.end:g}", "end")


class ControlNet(_Limited):
    """A ControlNet with an image for every frame."""

    path: Source
    """A diffusers folder or a single file, of the base model's family."""
    images: Images
    """Its input, an image for every frame."""
    canny: Canny | None = None
    """Computes edges from the images first; true takes the default thresholds."""
    weights: KeyFrames[Strength] | None = None
    """A further factor by frame, linear between key frames."""


class T2IAdapter(ControlNet):
    """A T2I-Adapter with an image for every frame."""


class SparseControl(_Limited):
    """A SparseCtrl encoder with images or scribbles at some frames."""

    path: Source
    """The official file or a diffusers folder, for RGB images or for scribbles."""
    images: KeyFrames[Source]
    """Its input by frame."""
    fit: Fit = "crop"
    """exact, crop or stretch, see Images; the official code crops."""
    normalize: Flag = False
    """Stretches greys from black to white, for scribbles that are not quite black and white."""


class IPAdapter(Record):
    """A reference image as a prompt, or several between which the embedding is interpolated."""

    path: Source
    """An IP-Adapter of the base model's family: plain, plus or full face."""
    images: KeyFrames[Source]
    """Reference images by frame."""
    encoder: Source
    """The image encoder that it was trained with: a folder of CLIP's vision model, local or on the
    hub."""
    scale: Strength = 1.0
    """How strongly it acts beside the text."""
    weights: KeyFrames[Strength] | None = None
    """A further factor by frame, linear between key frames."""
    mask: Images | None = None
    """Where it acts: an image, or one for every frame; white is as strongly as `scale` says, black
    not at all."""


class Start(Record):
    """A video that the clip begins from (video to video), or that it changes within a mask."""

    images: Images
    """The video."""
    strength: ShareOfSteps = 0.6
    """How far the clip may go from it: the share of the steps that run."""
    mask: Images | None = None
    """Inpainting mask: white is made anew, black stays as in the video."""


class Keyframes(Record):
    """Images that frames of the clip are to be (image to video)."""

    images: KeyFrames[Source]
    """By frame: {0: first.png}, or {0: first.png, -1: last.png}."""
    fit: Fit = "crop"
    """exact, crop or stretch, see Images."""
    strength: ShareOfSteps = 1.0
    """Share of the steps that run; below 1 all frames begin from the images."""


class Animate(Record):
    """The image that a PIA module animates."""

    image: Source
    """The first frame."""
    fit: Fit = "crop"
    """exact, crop or stretch, see Images."""
    motion: Literal["small", "medium", "large", "loop"] = "small"
    """How unlike the image the frames become over the clip; loop returns to it."""


class Region(Record):
    """A part of the frame with a prompt of its own; later ones lie in front."""

    prompt: Prompt
    """Text from a frame on, as the job's own."""
    mask: Images
    """White where the prompt acts."""


class MotionStrength(Record):
    """How strongly the motion module acts."""

    scale: Number = 1.0
    """0 is the image model alone, 1 is as trained; above 2 few clips hold."""
    blocks: Mapping[str, Number] | None = None
    """A further factor by block of the UNet: down_blocks.0, mid_block, up_blocks.2, ..."""
    frames: KeyFrames[Number] | None = None
    """A further factor by frame, linear between key frames."""


class MotionPositions(Record):
    """Positions of the frames for the motion module: frame n has offset + stretch * n, counted
    within a context window if the clip has several."""

    stretch: Positive = 1.0
    """Below 1 frames are nearer in time, so that less moves from one to the next; above 1 further
    apart."""
    offset: Strength = 0.0
    """Position of the first frame."""
