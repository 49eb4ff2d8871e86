"""MP4 and WebM writer: the ffmpeg program, fed one frame at a time.

Colours are BT.709 in limited range with 4:2:0 chroma and tagged so, as players assume.
"""

import errno
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import IO

import imageio_ffmpeg
import numpy as np

from ..errors import MediaError
from ..jobs import Encoding
from ..jobs.choices import CODECS
from .frames import Frames, size_of

ENCODERS = {
    ("mp4", "h264"): ("libx264",),
    ("mp4", "h265"): ("libx265",),
    ("mp4", "av1"): ("libsvtav1", "libaom-av1"),
    ("webm", "vp9"): ("libvpx-vp9",),
    ("webm", "av1"): ("libsvtav1", "libaom-av1"),
}
"""ffmpeg's encoders of a codec in a container, the best first."""
DEFAULT_CRF = {"h264": 18, "h265": 20, "av1": 18, "vp9": 18}
"""Each about as close to the original as h264 with 18, which looks the same."""
_TO_BT709 = (
    "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int+full_chroma_inp,"
    "setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv"
)


def codec_of(encoding: Encoding) -> str:
    """The codec of an mp4 or webm."""
    return encoding.codec or CODECS[encoding.format][0]


def find_encoder(encoding: Encoding) -> str:
    """ffmpeg's name of the encoder; if there is none, MediaError says what works."""
    codec = codec_of(encoding)
    known = _known_encoders(_ffmpeg())
    for name in ENCODERS[encoding.format, codec]:
        if name in known:
            return name
    works = [f"{f} with {c}" for (f, c), names in ENCODERS.items() if known & set(names)]
    raise MediaError(
        f"{encoding.format} with {codec} needs {' or '.join(ENCODERS[encoding.format, codec])}, "
        f"which this ffmpeg ({_ffmpeg()}) lacks; it can write {', '.join(works) or 'no video'}, "
        "and gif, webp, apng and png need no ffmpeg"
    )


def write_video(frames: Frames, path: Path, encoding: Encoding, text: str) -> None:
    """Write a video whose comment tag is `text`; MediaError if ffmpeg fails."""
    encoder = find_encoder(encoding)
    with tempfile.TemporaryDirectory(prefix="animatediff-") as folder:
        settings, log = Path(folder) / "settings.txt", Path(folder) / "log.txt"
        settings.write_text(f";FFMETADATA1\n{_as_metadata(text)}", encoding="utf-8")
        command = _command(size_of(frames), path, encoding, encoder, settings)
        with log.open("wb") as errors, _running(command, errors) as (process, pipe):
            with suppress(BrokenPipeError):  # the process has ended: status and log say why
                for index in range(len(frames)):
                    pipe.write(np.ascontiguousarray(frames[index]).tobytes())
                pipe.close()
            code = process.wait()
        if code:
            raise _failure(code, log.read_text(errors="replace"), encoding, path)


def _command(
    size: tuple[int, int], path: Path, encoding: Encoding, encoder: str, settings: Path
) -> list[str]:
    rate = Fraction(encoding.shown_fps).limit_denominator(100_000)
    shape = f"-s {size[0]}x{size[1]} -framerate {rate.numerator}/{rate.denominator}"
    frames = f"-f rawvideo -pix_fmt rgb24 {shape} -i pipe:0"
    written = f"-vf {_TO_BT709} -pix_fmt yuv420p -c:v {encoder}"
    faststart = "-movflags +faststart" if encoding.format == "mp4" else ""
    same_bytes = "-fflags +bitexact -flags:v +bitexact"  # no random ids
    return [
        _ffmpeg(),
        *f"-hide_banner -loglevel error -y {frames} -f ffmetadata".split(),
        *("-i", str(settings)),
        *f"-map 0:v -map_metadata 1 {written}".split(),
        *_quality(encoding, encoder),
        *f"{faststart} {same_bytes} -f {encoding.format}".split(),
        str(path),
    ]


def _quality(encoding: Encoding, encoder: str) -> list[str]:
    """Arguments of the encoder; crf 0 is lossless with all of them."""
    crf = DEFAULT_CRF[codec_of(encoding)] if encoding.crf is None else encoding.crf
    rate = ["-crf", str(crf)]
    if encoder == "libx265":
        quiet = "log-level=error"
        tag = ["-tag:v", "hvc1"]  # Apple's players need it
        if crf == 0:
            return [*tag, "-x265-params", f"{quiet}:lossless=1"]
        return [*rate, *tag, "-x265-params", quiet]
    if encoder == "libsvtav1":
        return [*(rate if crf else ("-svtav1-params", "lossless=1")), "-preset", "6"]
    if encoder == "libvpx-vp9":
        return [*rate, "-b:v", "0", "-row-mt", "1", *(() if crf else ("-lossless", "1"))]
    return [*rate, "-cpu-used", "6"] if encoder == "libaom-av1" else rate


@contextmanager
def _running(
    command: list[str], log: IO[bytes]
) -> Iterator[tuple["subprocess.Popen[bytes]", IO[bytes]]]:
    """A running program and its standard input; the program never outlives the block.

    Ctrl-C at a terminal does not reach it, so that a clip in work is written to its end.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=log,
        env={**os.environ, "SVT_LOG": "1"},  # SVT-AV1 prints by itself; errors only
        start_new_session=True,
    )
    assert process.stdin is not None
    try:
        yield process, process.stdin
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        with suppress(BrokenPipeError):
            process.stdin.close()


def _failure(code: int, log: str, encoding: Encoding, path: Path) -> MediaError | OSError:
    if os.strerror(errno.ENOSPC) in log:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    problem = f"{path.name}: ffmpeg cannot write this {encoding.format} with {codec_of(encoding)}"
    if code < 0:
        return MediaError(f"{problem}: it was ended by signal {-code}")
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return MediaError(f"{problem} ({lines[0] if lines else f'exit status {code}'})")


def _as_metadata(text: str) -> str:
    for special in "\\=;#\n":
        text = text.replace(special, "\\" + special)
    return f"comment={text}\n" if text else ""


def _ffmpeg() -> str:
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise MediaError(
            "mp4 and webm need ffmpeg; install it, or write gif, webp, apng or png"
        ) from error


@cache
def _known_encoders(ffmpeg: str) -> frozenset[str]:
    """Video encoders of an ffmpeg program."""
    try:
        listed = subprocess.run(
            [ffmpeg, "-hide_banner", "-encoders"], capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise MediaError(
            f"{ffmpeg}: cannot be run as ffmpeg ({error.strerror}); set "
            "IMAGEIO_FFMPEG_EXE to an ffmpeg program, or unset it"
        ) from error
    rows = (line.split() for line in listed.stdout.splitlines())
    return frozenset(row[1] for row in rows if len(row) > 2 and row[0].startswith("V"))
