"""How a clip is written: format, timing, quality."""

from dataclasses import dataclass
from typing import Literal, get_args

from .choices import one_of
from .kinds import Bytes

Format = Literal["gif", "mp4", "webm", "webp", "apng", "png"]
Codec = Literal["h264", "h265", "av1", "vp9"]
Dither = Literal["floyd_steinberg", "bayer", "none"]
FORMATS: tuple[str, ...] = get_args(Format)


@dataclass(frozen=True, kw_only=True)
class Output:
    """How the clip is written."""

    format: Format = "gif"
    """png is a folder of numbered frames."""
    fps: float = 8.0
    """Frames a second, above 0; GIF shows 50 at most."""
    crf: int | None = None
    """Quality of mp4 and webm, 0 (lossless) to 51 (h264, h265) or 63 (av1, vp9), lower is better;
    None is the codec's usual one."""
    codec: Codec | None = None
    """h264, h265 or av1 in mp4; vp9 or av1 in webm; None is h264 and vp9."""
    quality: int | None = None
    """Of webp, 0 to 100; None is lossless."""
    dither: Dither = "floyd_steinberg"
    """How a gif's 256 colours stand in for all."""
    max_size: Bytes | None = None
    """Bytes that the file may have at most (a prompt file may say 2MB); colours, then size, then
    frames a second are lowered until it fits."""
    ping_pong: bool = False
    """Forth and back again."""
    interpolate: float | None = None
    """Frames a second to which ffmpeg's minterpolate brings the clip, above fps."""
    sheet: bool = False
    """A contact sheet, PNG, beside the clip."""
    name: str = "{name}-{seed}"
    """The file's name without its ending, in the output folder; it may have subfolders. Fields in
    braces: any of the job (seed, prompt, steps, output.fps), preset, index (the job's number in the
    file, from 1) and the keys of the matrix; {index:03} fills up with zeros."""

    def __post_init__(self) -> None:
        one_of("output.format", self.format, Format)
        one_of("output.dither", self.dither, Dither)
        shown = self.interpolate or self.fps
        if not 0 < shown <= (50 if self.format == "gif" else 240) or self.fps <= 0:
            most = "50 (GIF can show no more)" if self.format == "gif" else "240"
            raise ValueError(f"output.fps must be above 0 and at most {most}, got {shown:g}")
        if self.interpolate is not None and self.interpolate <= self.fps:
            raise ValueError(
                f"output.interpolate must be above fps {self.fps:g}, got {self.interpolate:g}"
            )
        self._check_codec()
        if self.quality is not None and (self.format != "webp" or not 0 <= self.quality <= 100):
            raise ValueError("output.quality is 0 to 100, and for webp alone")
        if self.dither != "floyd_steinberg" and self.format != "gif":
            raise ValueError("output.dither is for gif alone")
        if self.max_size is not None and self.max_size < 1000:
            raise ValueError(f"output.max_size must be 1KB or more, got {self.max_size} bytes")
        if self.max_size is not None and self.format == "png":
            raise ValueError("output.max_size does not go with png frames")

    @property
    def suffix(self) -> str:
        """What the file's name ends with; frames are a folder."""
        return "" if self.format == "png" else f".{self.format}"

    def _check_codec(self) -> None:
        codecs = {"mp4": ("h264", "h265", "av1"), "webm": ("vp9", "av1")}.get(self.format, ())
        if self.codec is not None and self.codec not in codecs:
            known = " or ".join(codecs) or "none"
            raise ValueError(f"output.codec of {self.format} must be {known}, got {self.codec!r}")
        if self.crf is None:
            return
        most = 51 if (self.codec or (codecs or ("",))[0]) in ("h264", "h265") else 63
        if not codecs:
            raise ValueError("output.crf is for mp4 and webm alone")
        if not 0 <= self.crf <= most:
            raise ValueError(f"output.crf must be 0 to {most}, got {self.crf}")
