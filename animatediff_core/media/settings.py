"""The settings that a clip carries inside: put in by the writers, read back here.

GIF: comment; PNG and APNG: an iTXt chunk; WebP: Exif UserComment; MP4 and WebM: comment tag.
"""

from pathlib import Path

import av
from PIL import Image, UnidentifiedImageError

from ..errors import MediaError

PNG_KEY = "animatediff"
MARK = "# animatediff: generate makes this clip again from these settings\n"
"""First line of the settings of a clip, by which they are told from other comments."""
FIRST_FRAME = "00000.png"
_EXIF_FOLDER, _USER_COMMENT = 0x8769, 0x9286
_UNICODE = b"UNICODE\0"


def read_settings(path: Path) -> str | None:
    """The settings that a clip carries; None where it has none.

    `path` is a file, a folder of frames, or one of these. MediaError where it is missing or cannot
    be read.
    """
    if path.is_dir():
        path = path / FIRST_FRAME
    elif path.suffix.lower() == ".png" and path.with_name(FIRST_FRAME).is_file():
        path = path.with_name(FIRST_FRAME)
    if not path.is_file():
        raise MediaError(f"{path}: no such clip; check the path")
    text = _comment_of_movie(path) if path.suffix.lower() in (".mp4", ".webm") else _comment(path)
    return text if text is not None and text.startswith(MARK) else None


def sidecar_of(clip: Path) -> Path:
    """The path of the settings beside a clip: a file, a folder of frames, or one frame of it."""
    if clip.suffix.lower() == ".png" and not clip.is_dir():
        clip = clip.absolute().parent
        return clip.with_name(f"{clip.name}.yaml")
    return clip.with_name(f"{clip.name}.yaml") if clip.is_dir() else clip.with_suffix(".yaml")


def as_exif(text: str) -> bytes:
    """A block of Exif whose UserComment is the text."""
    exif = Image.Exif()
    exif.get_ifd(_EXIF_FOLDER)[_USER_COMMENT] = _UNICODE + text.encode("utf-16-be")
    return exif.tobytes().removeprefix(b"Exif\0\0")


def _comment(path: Path) -> str | None:
    try:
        with Image.open(path) as picture:
            if PNG_KEY in picture.info:
                return str(picture.info[PNG_KEY])
            if "comment" in picture.info:
                return bytes(picture.info["comment"]).decode(errors="replace")
            told = picture.getexif().get_ifd(_EXIF_FOLDER).get(_USER_COMMENT, b"")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError,
            ValueError) as error:  # fmt: skip
        raise MediaError(f"{path}: is damaged or no clip; name another file") from error
    if isinstance(told, bytes) and told.startswith(_UNICODE):
        return told.removeprefix(_UNICODE).decode("utf-16-be", errors="replace")
    return None


def _comment_of_movie(path: Path) -> str | None:
    try:
        with av.open(str(path)) as container:
            tags = {key.lower(): value for key, value in container.metadata.items()}
    except (av.FFmpegError, OSError) as error:
        raise MediaError(f"{path}: is damaged or no clip; name another file") from error
    return tags.get("comment")
