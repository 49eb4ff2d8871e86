"""Single pictures, contact sheets, and clips as folders of numbered PNG frames."""

from collections.abc import Sequence
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from PIL import PngImagePlugin

from .atomic import replacing
from .frames import Frames, Picked
from .settings import PNG_KEY

COLUMNS, MOST_ROWS = 8, 8
"""Of the contact sheet of one clip."""


def write_picture(picture: np.ndarray, path: Path) -> None:
    """One picture, h w 3 uint8, in the format of the path's ending, whole or not at all."""
    with replacing(path) as beside:
        iio.imwrite(beside, picture, plugin="pillow")


def write_frames(frames: Frames, folder: Path, text: str) -> None:
    """Every frame as 00000.png, 00001.png, ... into a folder that is there; the first carries
    `text`."""
    for index in range(len(frames)):
        carried = PngImagePlugin.PngInfo()
        if text and index == 0:
            carried.add_itxt(PNG_KEY, text)
        picture = np.ascontiguousarray(frames[index])
        iio.imwrite(folder / f"{index:05d}.png", picture, plugin="pillow", pnginfo=carried)


def contact_sheet(clips: Sequence[Frames], *, columns: int = 8, gap: int = 2) -> np.ndarray:
    """One row for each clip, `columns` of its frames evenly spaced: h w 3 uint8, white between."""
    rows = []
    for clip in clips:
        picks = np.linspace(0, len(clip) - 1, min(columns, len(clip))).round().astype(int)
        tiles = [
            np.pad(clip[int(i)], ((0, gap), (0, gap), (0, 0)), constant_values=255) for i in picks
        ]
        rows.append(np.concatenate(tiles, axis=1))
    width = max(row.shape[1] for row in rows)
    padded = [
        np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255)
        for row in rows
    ]
    return np.concatenate(padded)


def clip_sheet(frames: Frames) -> np.ndarray:
    """One clip's frames in reading order, 8 a row, evenly spaced where there are more than 64."""
    most = min(len(frames), COLUMNS * MOST_ROWS)
    picks = [int(i) for i in np.linspace(0, len(frames) - 1, most).round()]
    rows = [Picked(frames, picks[i : i + COLUMNS]) for i in range(0, most, COLUMNS)]
    return contact_sheet(rows, columns=COLUMNS)
