"""Settings embedded in clips: written by the format writers, read back here.

GIF: comment; PNG and APNG: an iTXt chunk; WebP: Exif UserComment; MP4 and WebM: comment tag.
"""

import os
from pathlib import Path

from PIL import Image

from ..errors import MediaError
from ..jobs import FORMATS
from .opening import open_film, open_image, reading_image

PNG_KEY = "animatediff"
MARK = "# animatediff: generate makes this clip again from these settings\n"
"""First line of embedded settings; other comments lack it."""
FIRST_FRAME = "00000.png"
_EXIF_FOLDER, _USER_COMMENT = 0x8769, 0x9286
_UNICODE = b"UNICODE\0"


def read_settings(path: Path) -> str | None:
    """Settings embedded in a clip; None if there are none.

    `path` is a file, a folder of frames, or a frame in it. MediaError if it cannot be read.
    """
    if os.path.isdir(path):
        path = path / FIRST_FRAME
    elif path.suffix.lower() == ".png" and path.with_name(FIRST_FRAME).is_file():
        path = path.with_name(FIRST_FRAME)
    if not os.path.isfile(path):
        raise MediaError(f"{path}: no such clip; check the path")
    text = (
        _video_comment(path) if path.suffix.lower() in (".mp4", ".webm") else _image_comment(path)
    )
    return text if text is not None and text.startswith(MARK) else None


def settings_of(clip: Path) -> tuple[Path, str | None]:
    """The prompt file that makes a clip again: its sidecar, or the clip with the text in it.

    Raises MediaError if there is neither.
    """
    sidecar = sidecar_of(clip)
    if os.path.isfile(sidecar):
        return sidecar, None
    if (text := read_settings(clip)) is None:
        raise MediaError(
            f"{clip}: carries no settings and has no sidecar {sidecar.name} beside it; name a clip "
            "made by generate, or a prompt file"
        )
    return clip, text


def is_clip(path: Path) -> bool:
    """Whether a path is that of a clip: a file of a clip's format, or a folder of frames."""
    if path.is_dir():
        return (path / FIRST_FRAME).is_file()
    return path.suffix.lower().removeprefix(".") in FORMATS


def sidecar_of(clip: Path) -> Path:
    """The settings file beside a clip (a file, a folder of frames, or a frame in it)."""
    if clip.suffix.lower() == ".png" and not clip.is_dir():
        clip = clip.absolute().parent
    elif not os.path.isdir(clip):
        return clip.with_suffix(".yaml")
    name = clip.name or clip.absolute().name  # `.` has none
    return clip.parent / f"{name}.yaml"


def as_exif(text: str) -> bytes:
    """Exif with the text as UserComment."""
    exif = Image.Exif()
    exif.get_ifd(_EXIF_FOLDER)[_USER_COMMENT] = _UNICODE + text.encode("utf-16-be")
    return exif.tobytes().removeprefix(b"Exif\0\0")


def _image_comment(path: Path) -> str | None:
    with open_image(path) as image, reading_image(path):
        if PNG_KEY in image.info:
            return str(image.info[PNG_KEY])
        if "comment" in image.info:
            return bytes(image.info["comment"]).decode(errors="replace")
        comment = image.getexif().get_ifd(_EXIF_FOLDER).get(_USER_COMMENT, b"")
    if isinstance(comment, bytes) and comment.startswith(_UNICODE):
        return comment.removeprefix(_UNICODE).decode("utf-16-be", errors="replace")
    return None


def _video_comment(path: Path) -> str | None:
    with open_film(path) as container:
        tags = {key.lower(): value for key, value in container.metadata.items()}
    return tags.get("comment")
