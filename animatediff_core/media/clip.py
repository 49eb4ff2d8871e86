"""Clips to files: GIF with one good palette and exact timing, MP4 that plays everywhere.

Frames are f h w 3 uint8 RGB.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from PIL import Image

from ..errors import MediaError
from .atomic import replacing


def write_clip(
    frames: np.ndarray, path: Path, *, format: str, fps: float, crf: int = 18, comment: str = ""
) -> None:
    """Write a clip, whole or not at all. `format` is gif or mp4; `comment` goes into a GIF.

    Raises MediaError where the encoder refuses, SurroundingsError where the disk does.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames must be f h w 3 uint8, got {frames.shape} {frames.dtype}")
    with replacing(path) as beside:
        if format == "gif":
            _write_gif(frames, beside, fps, comment)
        elif format == "mp4":
            _write_mp4(frames, beside, fps, crf)
        else:
            raise ValueError(f"format must be gif or mp4, got {format!r}")


def check_size(format: str, width: int, height: int) -> None:
    """MediaError where a format cannot hold pictures of this size."""
    if format == "mp4" and (width % 2 or height % 2):
        raise MediaError(
            f"mp4 needs an even width and height, got {width} x {height}; change the size or "
            "write a gif"
        )


def durations(count: int, fps: float) -> list[int]:
    """Hundredths of a second for each frame; no frame starts more than half of one off its time."""
    starts = [round(100 * index / fps) for index in range(count + 1)]
    return [after - before for before, after in zip(starts, starts[1:], strict=False)]


def _write_gif(frames: np.ndarray, path: Path, fps: float, comment: str) -> None:
    palette = _palette(frames)
    pictures = [
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
        for frame in frames
    ]
    pictures[0].save(
        path,
        format="GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=[10 * hundredths for hundredths in durations(len(frames), fps)],
        loop=0,
        optimize=False,
        disposal=1,
        comment=comment.encode(),
    )


def _palette(frames: np.ndarray) -> Image.Image:
    """256 colours for the whole clip, from a strip of at most about a million pixels."""
    step = max(1, int(np.sqrt(frames[..., 0].size / 1_000_000)))
    strip = np.concatenate(list(frames[:, ::step, ::step]))
    return Image.fromarray(np.ascontiguousarray(strip)).quantize(
        256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE
    )


def _write_mp4(frames: np.ndarray, path: Path, fps: float, crf: int) -> None:
    check_size("mp4", frames.shape[2], frames.shape[1])
    try:
        iio.imwrite(
            path,
            frames,
            plugin="FFMPEG",
            fps=fps,
            codec="libx264",
            pixelformat="yuv420p",
            macro_block_size=1,
            quality=None,
            ffmpeg_log_level="error",
            output_params=["-crf", str(crf), "-movflags", "+faststart"],
        )
    except (RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise MediaError(f"{path}: ffmpeg cannot write this mp4 ({first})") from error


def free_path(folder: Path, stem: str, suffix: str) -> Path:
    """A path in `folder` that no file has: STEM.gif, STEM-2.gif, …; reserved until `release`."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = folder / f"{stem}{'' if number == 1 else f'-{number}'}{suffix}"
        try:
            os.close(os.open(_reservation(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            number += 1
            continue
        if not path.exists():
            return path
        release(path)
        number += 1


def release(path: Path) -> None:
    """Give a reserved path free again; what has been written there stays."""
    _reservation(path).unlink(missing_ok=True)


def _reservation(path: Path) -> Path:
    return path.with_name(f".{path.name}.reserved")


def contact_sheet(clips: Sequence[np.ndarray], *, columns: int = 8, gap: int = 2) -> np.ndarray:
    """One row for each clip, `columns` of its frames evenly spaced: h w 3 uint8, white between."""
    rows = []
    for clip in clips:
        picks = np.linspace(0, len(clip) - 1, min(columns, len(clip))).round().astype(int)
        tiles = [np.pad(clip[i], ((0, gap), (0, gap), (0, 0)), constant_values=255) for i in picks]
        rows.append(np.concatenate(tiles, axis=1))
    width = max(row.shape[1] for row in rows)
    padded = [
        np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255)
        for row in rows
    ]
    return np.concatenate(padded)


def write_picture(picture: np.ndarray, path: Path) -> None:
    """One picture, h w 3 uint8, in the format of the path's ending, whole or not at all."""
    with replacing(path) as beside:
        Image.fromarray(picture).save(beside)
