"""Image and film files, opened: listed formats and local files only, errors in one line."""

import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
from PIL import Image

from ..errors import MediaError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM")
IMAGE_SUFFIXES = frozenset(
    (".png", ".apng", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
    + (".ppm", ".pgm", ".pfm")
)
_FILMS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,ivf,obu,ogg,flv,asf,mxf,nut,"
    "yuv4mpegpipe,gif"
)
"""ffmpeg's demuxers that read one local file: no playlists, devices, scripts or networks."""
_HEIF = ("heic", "heix", "heim", "heis", "hevc", "mif1", "msf1", "avif", "avis")
"""Brands of images of which ffmpeg reads one tile, without their alpha channel."""
MAX_PIXELS = 2**26
"""Of one frame: 8192 x 8192."""
_BROKEN = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, OverflowError),
    *(struct.error, zlib.error),
)
"""What Pillow raises on damaged or hostile files."""


def is_image(path: Path) -> bool:
    """Whether Pillow reads the file, not ffmpeg."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def is_hidden(path: Path) -> bool:
    """Whether the name begins with a dot, as those of macOS's `._` files."""
    return path.name.startswith(".")


@contextmanager
def reading_image(path: Path) -> Iterator[None]:
    """Pillow's errors become a MediaError with the file's name; its warnings are not shown."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Image.DecompressionBombError as error:
        raise _too_large(path, "too many") from error
    except _BROKEN as error:
        raise MediaError(
            f"{path}: is not a readable image ({', '.join(FORMATS)}); repair, convert or remove it"
        ) from error


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image file without decoding it; MediaError if it cannot be opened."""
    check_file(path, "image")
    with reading_image(path):
        image = Image.open(path, formats=FORMATS)
    with image:
        check_pixels(path, *image.size)
        yield image


@contextmanager
def reading_film(path: Path) -> Iterator[None]:
    """ffmpeg's errors become a MediaError with the file's name."""
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise MediaError(
            f"{path}: is not a readable video; repair it, convert it with ffmpeg, or remove it"
        ) from error


def open_film(path: Path) -> "av.container.InputContainer":
    """Open a film without decoding it; MediaError if it cannot be opened."""
    check_file(path, "video")
    options = {"protocol_whitelist": "file", "format_whitelist": _FILMS}
    with reading_film(path):
        film = av.open(f"file:{path}", container_options=options, metadata_errors="replace")
    if film.metadata.get("major_brand") in _HEIF:
        film.close()
        raise MediaError(f"{path}: is a HEIF or AVIF image; save it as PNG or JPEG")
    return film


def check_file(path: Path, kind: str) -> None:
    """MediaError unless the path is an ordinary file."""
    if not os.path.isfile(path):  # Path.is_file raises for names that no disk can hold
        if os.path.exists(path):
            raise MediaError(f"{path}: is not a file; name a file of this computer")
        raise MediaError(f"{path}: no such {kind}; check the path")


def check_pixels(path: Path, width: int, height: int) -> None:
    """MediaError if a frame is too large to be decoded."""
    if width * height > MAX_PIXELS:
        raise _too_large(path, f"{width} x {height}")


def _too_large(path: Path, size: str) -> MediaError:
    return MediaError(f"{path}: has {size} pixels; at most {MAX_PIXELS} are read; make it smaller")
