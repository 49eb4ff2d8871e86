"""Third stage: a WebVid-style folder of drawn clips, the data of both training stages.

`clips.csv` has the columns videoid, name (the caption) and page_dir; each clip is
`clips/VIDEOID.mp4`, 16 frames of 64 x 64, H.264 without loss.
"""

import csv
import random
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from torch import Tensor

from ..media.atomic import atomic_write
from .renderer import render
from .world import draw_scene, poses

CLIPS = 6000
FRAMES = 16


def write_clips(folder: Path, *, count: int = CLIPS) -> Iterator[tuple[int, int]]:
    """Draw the clips that are not there yet, then the CSV; yields how many are done of how many."""
    videos = folder / "clips"
    rows = []
    for index in range(count):
        rng = random.Random(f"clip {index}")
        scene = draw_scene(rng)
        path = videos / f"{index:05d}.mp4"
        rows.append((path.stem, scene.caption(rng), "drawn"))
        if not path.exists():
            _write_lossless(render(scene, poses(scene, rng, FRAMES)), path)
        if (index + 1) % 500 == 0 or index + 1 == count:
            yield index + 1, count
    with atomic_write(folder / "clips.csv") as temporary, temporary.open("w", newline="") as file:
        csv.writer(file).writerows([("videoid", "name", "page_dir"), *rows])


def _write_lossless(clip: Tensor, path: Path) -> None:
    """clip: f 3 h w in [0, 1]."""
    frames = (clip.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    with atomic_write(path) as temporary, av.open(str(temporary), "w") as container:
        stream = container.add_stream("libx264rgb", rate=8, options={"qp": "0", "preset": "fast"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "rgb24"
        for image in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
