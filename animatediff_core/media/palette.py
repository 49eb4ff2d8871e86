"""One palette for a whole clip, and frames as palette indices, dithered or not.

Legend: n colours or pixels, h w image size. Colours are RGB uint8.
"""

import numpy as np
from PIL import Image

from ..jobs.choices import Dither
from .frames import Frames, size_of

SAMPLE = 250_000
"""Pixels from which a palette is made, about, at most."""
ROUNDS = 3
"""Rounds of k-means after the median cut: a fifth less error."""


def make_palette(frames: Frames, colours: int) -> np.ndarray:
    """At most `colours` (1..256) colours, n 3, for all frames; exact if the clip has no more."""
    pixels = _sample(frames)
    packed = np.unique(pixels.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32))
    if len(packed) <= colours:
        return np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=1).astype(np.uint8)
    quantized = Image.fromarray(pixels[None]).quantize(
        colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE
    )
    palette = np.asarray(quantized.getpalette(), np.uint8).reshape(-1, 3)[:colours]
    for _ in range(ROUNDS):
        palette = _means(palette, pixels)
    return palette


def _means(palette: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """One round of k-means: each colour becomes the mean of its nearest pixels."""
    nearest = Quantizer(palette, "none").indices(pixels[None])[0]
    counts = np.bincount(nearest, minlength=len(palette))
    sums = [np.bincount(nearest, pixels[:, i], minlength=len(palette)) for i in range(3)]
    means = np.stack(sums, axis=1) / np.maximum(counts, 1)[:, None]
    return np.where(counts[:, None] > 0, means.round(), palette).astype(np.uint8)


def _sample(frames: Frames) -> np.ndarray:
    """Pixels n 3 of all frames, on a grid that shifts from frame to frame."""
    width, height = size_of(frames)
    step = max(1, int(np.ceil(np.sqrt(len(frames) * width * height / SAMPLE))))
    chunks = []
    for index in range(len(frames)):
        top, left = (7 * index) % step % height, (3 * index) % step % width
        chunks.append(frames[index][top::step, left::step].reshape(-1, 3))
    return np.concatenate(chunks)


class Quantizer:
    """Frames h w 3 -> indices h w uint8 of a palette n 3."""

    def __init__(self, palette: np.ndarray, dither: Dither) -> None:
        self._count = len(palette)
        self._method = Image.Dither.NONE
        if dither == "floyd_steinberg":
            self._method = Image.Dither.FLOYDSTEINBERG
        padded = np.concatenate([palette, np.repeat(palette[-1:], 256 - len(palette), axis=0)])
        self._palette = Image.new("P", (1, 1))
        self._palette.putpalette(padded.tobytes())
        self._grid = _bayer_grid() * _spacing(palette) if dither == "bayer" else None

    def indices(self, frame: np.ndarray) -> np.ndarray:
        """The palette's colour for each pixel: h w uint8."""
        if self._grid is not None:
            height, width = frame.shape[:2]
            tiles = (-(-height // 8), -(-width // 8))
            shift = np.tile(self._grid, tiles)[:height, :width, None]
            frame = (frame + shift).round().clip(0, 255).astype(np.uint8)
        image = Image.fromarray(np.ascontiguousarray(frame))
        indices = np.asarray(image.quantize(palette=self._palette, dither=self._method))
        return np.asarray(np.minimum(indices, self._count - 1), np.uint8)


def _bayer_grid() -> np.ndarray:
    """The ordered thresholds of 8 x 8 pixels, evenly spread over -0.5..0.5."""
    grid = np.zeros((1, 1))
    for _ in range(3):
        grid = np.block([[4 * grid, 4 * grid + 2], [4 * grid + 3, 4 * grid + 1]])
    return (grid + 0.5) / 64 - 0.5


def _spacing(palette: np.ndarray) -> float:
    """Median distance between neighbouring colours, for each channel.

    A shift by half of it in all channels reaches the border to the next colour, not beyond.
    """
    if len(palette) < 2:
        return 0.0
    points = palette.astype(np.float64)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    return float(np.median(distances.min(axis=1)) / np.sqrt(3))
