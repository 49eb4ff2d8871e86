"""How a clip is encoded."""

from dataclasses import dataclass
from typing import Literal

Dither = Literal["floyd_steinberg", "bayer", "none"]


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Format, timing and quality of a file."""

    format: str = "gif"
    """gif, mp4, webm, webp, apng or png (a folder of numbered frames)."""
    fps: float = 8.0
    """Frames a second, above 0; 50 at most for gif."""
    codec: str | None = None
    """h264 (None), h265 or av1 in mp4; vp9 (None) or av1 in webm."""
    crf: int | None = None
    """Quality of mp4 and webm, 0 (lossless) to 51 or 63, lower is better; None is usual."""
    quality: int | None = None
    """Of webp, 0 to 100; None is lossless."""
    dither: Dither = "floyd_steinberg"
    """Of gif, and of apng with colours."""
    colours: int | None = None
    """Of the palette: gif 2 to 255 (a 256th says that a pixel has not changed), None is 255;
    apng 2 to 256, None has no palette and is lossless."""
