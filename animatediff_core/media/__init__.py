"""Frames and files: reading videos and pictures, writing clips, whole or not at all."""

from .atomic import explained, replacing, replacing_folder, write_text
from .clip import check_encoder, check_size, write_clip
from .encoding import Encoding
from .fit import write_fitting
from .frames import Frames, durations, ping_pong
from .interpolate import check_interpolation, interpolated
from .names import free_path, release, remove
from .settings import MARK, read_settings, sidecar_of
from .stills import clip_sheet, contact_sheet, write_picture
from .video import Video, open_video, read_picture

__all__ = [
    "MARK",
    "Encoding",
    "Frames",
    "Video",
    "check_encoder",
    "check_interpolation",
    "check_size",
    "clip_sheet",
    "contact_sheet",
    "durations",
    "explained",
    "free_path",
    "interpolated",
    "open_video",
    "ping_pong",
    "read_picture",
    "read_settings",
    "release",
    "remove",
    "replacing",
    "replacing_folder",
    "sidecar_of",
    "write_clip",
    "write_fitting",
    "write_picture",
    "write_text",
]
