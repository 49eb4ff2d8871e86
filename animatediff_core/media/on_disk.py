"""Frames that are too many for the memory: in a file without a name, read where they are needed."""

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np


def on_disk(parts: Iterable[np.ndarray], folder: Path) -> np.ndarray:
    """All parts, f h w 3 uint8 each, joined along f: read-only, mapped from a file in `folder`.

    The file has no name and is gone with the array. It is written by ordinary writes, so that a
    full disk is an OSError, which a mapping would turn into a crash.
    """
    folder.mkdir(parents=True, exist_ok=True)
    frames, shape = 0, ()
    with TemporaryFile(dir=folder) as file:
        for part in parts:
            file.write(np.ascontiguousarray(part).data)
            frames, shape = frames + len(part), part.shape[1:]
        file.flush()
        return np.memmap(file, dtype=np.uint8, mode="r", shape=(frames, *shape))
