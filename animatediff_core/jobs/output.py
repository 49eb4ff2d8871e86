"""How a clip is written: format, timing, quality."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, get_args

from annotated_types import Ge, Le

from ..errors import Problem
from .choices import CODECS, Codec, Dither, Format
from .kinds import NO_FLAG, Bytes, Flag, Index, Positive
from .record import Record

FORMATS: tuple[str, ...] = get_args(Format)
_OF_FORMAT = ("codec", "crf", "quality", "dither", "loop")
_LOOPING = ("gif", "webp", "apng")
"""Settings that belong to the output format they are given with."""


class Encoding(Record):
    """Format, timing and quality of a file."""

    format: Format = "gif"
    """File format; png is a folder of numbered frames."""
    fps: Positive = 8.0
    """Frames a second, at most 240; GIF shows 50 at most."""
    crf: Index | None = None
    """Quality of mp4 and webm, 0 (lossless) to 51 (h264, h265) or 63 (av1, vp9), lower is better;
    default: the codec's."""
    codec: Codec | None = None
    """h264, h265 or av1 in mp4; vp9 or av1 in webm; default: h264 and vp9."""
    quality: Annotated[int, Ge(0), Le(100), NO_FLAG] | None = None
    """Quality of webp; default: lossless."""
    loop: Annotated[int, Ge(0), Le(65535), NO_FLAG] = 0
    """How many times a gif, webp or apng plays; 0 is without end."""
    dither: Dither = "floyd_steinberg"
    """How a gif's 256 colours stand in for all."""

    @classmethod
    def merged(cls, lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
        """`upper` over `lower`; another format leaves behind what belongs to the lower one."""
        if "format" in upper and upper["format"] != lower.get("format", "gif"):
            lower = {key: value for key, value in lower.items() if key not in _OF_FORMAT}
        return super().merged(lower, upper)

    @property
    def suffix(self) -> str:
        """The ending of the file's name; frames are a folder, which has none."""
        return "" if self.format == "png" else f".{self.format}"

    @property
    def shown_fps(self) -> float:
        """Frames a second of the file."""
        return self.fps

    def misfits(self) -> Iterator[Problem]:
        most = 50 if self.format == "gif" else 240
        if self.shown_fps > most:
            why = " (GIF can show no more)" if self.format == "gif" else ""
            yield Problem(f"must be at most {most}{why}, got {self.shown_fps:g}", "fps")
        codecs = CODECS.get(self.format, ())
        if self.codec is not None and self.codec not in codecs:
            known = " or ".join(codecs) or "none"
            yield Problem(f"of {self.format} must be {known}, got {self.codec!r}", "codec")
        most = 51 if (self.codec or (*codecs, "")[0]) in ("h264", "h265") else 63
        if self.crf is not None and not codecs:
            yield Problem("is for mp4 and webm alone", "crf")
        elif self.crf is not None and self.crf > most:
            yield Problem(f"must be 0 to {most}, got {self.crf}", "crf")
        if self.loop and self.format not in _LOOPING:
            yield Problem("is for gif, webp and apng alone", "loop")
        if self.quality is not None and self.format != "webp":
            yield Problem("is for webp alone", "quality")


class Output(Encoding):
    """How the clip is written."""

    max_size: Bytes | None = None
    """Bytes that the file may have at most (a prompt file may say 2MB); colours, then size, then
    frames a second are lowered until it fits."""
    ping_pong: Flag = False
    """Forth and back again."""
    interpolate: Positive | None = None
    """Frames a second to which ffmpeg's minterpolate brings the clip, above fps."""
    sheet: Flag = False
    """A contact sheet, PNG, beside the clip."""
    name: str = "{name}-{seed}"
    """The file's name without its ending, in the output folder; it may have subfolders. Fields in
    braces: any of the job (seed, prompt, steps, output.fps), preset, index (the job's number in the
    file, from 1) and the keys of the matrix; {index:03} fills up with zeros."""

    @property
    def shown_fps(self) -> float:
        """Frames a second of the file."""
        return self.interpolate or self.fps

    def misfits(self) -> Iterator[Problem]:
        yield from super().misfits()
        if self.interpolate is not None and self.interpolate <= self.fps:
            yield Problem(
                f"must be above fps {self.fps:g}, got {self.interpolate:g}", "interpolate"
            )
        if self.dither != "floyd_steinberg" and self.format != "gif":
            yield Problem("is for gif alone", "dither")
        if self.max_size is not None and self.format == "png":
            yield Problem("does not go with png frames", "max_size")
