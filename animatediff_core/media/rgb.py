"""A frame of an image or film file as RGB: orientation, pixel shape, bit depth, alpha, HDR.

Frames are h w 3 uint8 RGB.
"""

from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageOps

from ..errors import MediaError
from .opening import check_pixels

Span = tuple[float, float]
"""Values that become 0 and 255."""
BACKGROUND, MASK_BACKGROUND = 255, 0
"""Transparent images lie on white, transparent masks on black."""
DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
"""Pillow's modes of grey with more than 8 bits."""
_HDR = (16, 18)
"""ffmpeg's numbers of PQ and HLG."""
_TONE_MAP = ":out_transfer=bt709:out_primaries=bt709:intent=perceptual"


def upright(image: Image.Image) -> Image.Image:
    """A decoded image as its EXIF orientation shows it: RGB, RGBA or deep grey."""
    image = ImageOps.exif_transpose(image)
    if image.mode in DEEP:
        return image
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def span_of(image: Image.Image) -> Span:
    """The range of a deep image's values, as it was decoded.

    16 bits range from 0 to 65535 and floats from 0 to 1; other floats and integers between their
    own lowest and highest value.
    """
    if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM"):
        return 0, 65535
    values = np.asarray(image)
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    return (0, 1) if image.mode == "F" and low >= 0 and high <= 1 else (low, high)


def joint_span(spans: Iterable[Span]) -> Span | None:
    """The range of several images, so that equal values stay equal."""
    found = list(spans)
    return (min(low for low, _ in found), max(high for _, high in found)) if found else None


def to_rgb(image: Image.Image, span: Span | None, *, mask: bool = False) -> np.ndarray:
    """An image of `upright`."""
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        assert span is not None
        return _scaled(pixels, span)
    return _flattened(pixels, mask=mask) if pixels.shape[2] == 4 else pixels


def film_graph(stream: "av.VideoStream", frame: "av.VideoFrame", path: Path) -> "av.filter.Graph":
    """ffmpeg's filters from a film's frames to RGB or RGBA with square pixels, HDR tone-mapped."""
    width = max(round(frame.width * (stream.sample_aspect_ratio or Fraction(1))), 1)
    check_pixels(path, width, frame.height)
    hdr = stream.codec_context.color_trc in _HDR
    make = _hdr_graph if hdr else _graph
    try:
        return make(frame.width, frame.height, frame.format.name, width, _TONE_MAP if hdr else "")
    except av.FFmpegError as error:
        problem = "is HDR, which this PyAV cannot tone-map" if hdr else "has unknown pixels"
        raise MediaError(f"{path}: {problem}; convert it to 8-bit SDR with ffmpeg") from error


def _graph(
    width: int, height: int, pixels: str, shown_width: int, tone_map: str
) -> "av.filter.Graph":
    graph, layout = av.filter.Graph(), av.VideoFormat(pixels, width, height)
    if hasattr(graph, "threads"):  # since PyAV 18; a thread pool does not survive a fork
        graph.threads = 1
    alpha = any(part.is_alpha for part in layout.components)
    graph.link_nodes(
        graph.add_buffer(width=width, height=height, format=layout, time_base=Fraction(1, 1000)),
        graph.add("scale", f"w={shown_width}:h={height}:flags=bicubic{tone_map}"),
        graph.add("format", "rgba" if alpha else "rgb24"),
        graph.add("buffersink"),
    ).configure()
    return graph


_hdr_graph = lru_cache(maxsize=4)(_graph)
"""Made once: ffmpeg's table of colours takes 5 seconds."""


def frame_to_rgb(
    graph: "av.filter.Graph", frame: "av.VideoFrame", path: Path, *, mask: bool = False
) -> np.ndarray:
    """A decoded frame of a film, through the filters of `film_graph`."""
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV 18 has no name for other side data of the frame, as EXIF
        matrix = None
    graph.push(frame)
    pixels = graph.pull().to_ndarray()
    if pixels.shape[2] == 4:
        pixels = _flattened(pixels, mask=mask)
    if matrix is None:
        return np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90))
    return _displayed(pixels, bytes(matrix), path)


def _displayed(pixels: np.ndarray, matrix: bytes, path: Path) -> np.ndarray:
    """Turned and mirrored by a display matrix: x' = a x + c y, y' = b x + d y."""
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].astype(int).tolist()
    across, along = abs(b) + abs(c), abs(a) + abs(d)
    if min(across, along) > 0.01 * max(across, along):
        raise MediaError(
            f"{path}: is turned by an angle other than 90 degrees; turn it with ffmpeg"
        )
    if across > along:
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _scaled(values: np.ndarray, span: Span) -> np.ndarray:
    """Grey values h w -> h w 3; what is no number is black."""
    low, high = span
    if low == high:
        low = min(low, 0.0)
    values = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
    share = (values - low) / ((high - low) or 1)
    grey = (share.clip(0, 1) * 255).round().astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def _flattened(pixels: np.ndarray, *, mask: bool) -> np.ndarray:
    """RGBA h w 4 on its background; a mask of one colour is its alpha."""
    colour, alpha = pixels[..., :3], pixels[..., 3:].astype(np.uint16)
    visible = colour[alpha[..., 0] > 0]
    if mask and alpha.min() < alpha.max() and (visible == visible[0]).all():
        return np.repeat(pixels[..., 3:], 3, axis=2)
    ground = MASK_BACKGROUND if mask else BACKGROUND
    return ((colour * alpha + ground * (255 - alpha) + 127) // 255).astype(np.uint8)
