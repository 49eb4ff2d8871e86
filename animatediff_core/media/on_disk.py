"""Frames in a temporary file, for clips that do not fit in memory."""

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np


def on_disk(chunks: Iterable[np.ndarray], folder: Path) -> np.ndarray:
    """All chunks, f h w 3 uint8 each, joined along f: a read-only map of a file in `folder`.

    The file has no name and disappears with the array. Ordinary writes make a full disk an
    OSError; writes to a map would crash.
    """
    folder.mkdir(parents=True, exist_ok=True)
    frames, shape = 0, ()
    with TemporaryFile(dir=folder) as file:
        for chunk in chunks:
            file.write(np.ascontiguousarray(chunk).data)
            frames, shape = frames + len(chunk), chunk.shape[1:]
        file.flush()
        return np.memmap(file, dtype=np.uint8, mode="r", shape=(frames, *shape))
