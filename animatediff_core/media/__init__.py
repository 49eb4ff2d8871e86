"""Frames and files: reading videos and pictures, writing clips, whole or not at all."""

from .atomic import replacing, write_text
from .clip import (
    check_size,
    contact_sheet,
    durations,
    free_path,
    release,
    write_clip,
    write_picture,
)
from .video import Video, open_video, read_picture

__all__ = [
    "Video",
    "check_size",
    "contact_sheet",
    "durations",
    "free_path",
    "open_video",
    "read_picture",
    "release",
    "replacing",
    "write_clip",
    "write_picture",
    "write_text",
]
