"""Video data: which clips there are, and one window of frames from one of them.

Every draw depends only on the seed and the sample's number, so a resumed run goes on with exactly
the samples that an uninterrupted one would have seen.

Legend: f frames, h w pixels.
"""

import csv
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from ..errors import MediaError, TrainingError
from ..media import open_video, read_picture
from .cache import LatentCache
from .config import TrainConfig

Condition = Callable[[Path, Tensor], Tensor]
"""What a stage reads of a sample besides: of its file, and its first frame 3 h w in [-1, 1]."""
VIDEO_SUFFIXES = {".mp4", ".mkv", ".mov", ".avi", ".webm", ".gif", ".m4v", ".mpg", ".mpeg", ".ts"}
PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


@dataclass(frozen=True)
class ClipFile:
    """One video (or picture) and what it shows."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Sample:
    """One window: pixels f 3 h w in [-1, 1], or moments f 2c h w where latents are cached."""

    frames: Tensor
    caption: str
    bad: tuple[tuple[int, str], ...]
    """Number and reason of each file that was tried before and could not be read."""
    condition: Tensor | None = None
    """As the run's Condition gives it, mirrored with the frames; zeros where it was dropped."""


def list_clips(config: TrainConfig) -> list[ClipFile]:
    """The clips of a CSV, or of a folder with captions beside the videos; at least one."""
    folder = Path(config.data.video_folder)
    if not folder.is_dir():
        raise TrainingError(
            f"{folder}: no such folder; set train_data.video_folder to where the videos are"
        )
    if config.data.csv_path is not None:
        clips = _listed(Path(config.data.csv_path), folder)
    else:
        clips = _captioned(folder, config.stage)
    if not clips:
        raise TrainingError(
            f"{folder}: no videos in this folder; put videos with a .txt caption beside each, "
            "or name a CSV in train_data.csv_path"
        )
    return clips


def _listed(table: Path, folder: Path) -> list[ClipFile]:
    if not table.is_file():
        raise TrainingError(f"{table}: no such file; train_data.csv_path must name a CSV")
    with table.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        missing = {"videoid", "name"} - set(rows.fieldnames or ())
        if missing:
            raise TrainingError(
                f"{table}: no column {', '.join(sorted(missing))}; the first line must name the "
                "columns videoid, name and page_dir"
            )
        return [ClipFile(folder / f"{row['videoid']}.mp4", row["name"] or "") for row in rows]


def _captioned(folder: Path, stage: str) -> list[ClipFile]:
    suffixes = VIDEO_SUFFIXES | (PICTURE_SUFFIXES if stage != "motion" else set())
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes)
    without = [p.name for p in paths if not p.with_suffix(".txt").is_file()]
    if without:
        raise TrainingError(
            f"{folder}: no caption file for {', '.join(without[:5])}"
            f"{' and others' if len(without) > 5 else ''}; write one line into NAME.txt beside each"
        )
    return [ClipFile(p, p.with_suffix(".txt").read_text("utf-8").strip()) for p in paths]


@dataclass(frozen=True)
class Batch:
    """Some samples as one; the loader pins it where a GPU reads from main memory."""

    frames: Tensor
    """(b f) 3 h w, or their moments."""
    captions: list[str]
    bad: tuple[tuple[int, str], ...]
    """As a sample's, of all of them."""
    conditions: Tensor | None
    """b ..., where samples have one."""

    def pin_memory(self) -> "Batch":
        """The same in memory that a GPU copies from by itself."""
        seen = None if self.conditions is None else self.conditions.pin_memory()
        return replace(self, frames=self.frames.pin_memory(), conditions=seen)


def collated(samples: Sequence[Sample]) -> Batch:
    """One batch of samples of one length."""
    seen = [one.condition for one in samples if one.condition is not None]
    return Batch(
        frames=torch.cat([one.frames for one in samples]),
        captions=[one.caption for one in samples],
        bad=tuple(bad for one in samples for bad in one.bad),
        conditions=torch.stack(seen) if seen else None,
    )


class Clips(Dataset[Sample]):
    """Endless samples by number; each pass over the files is a permutation of its own."""

    def __init__(
        self,
        files: Sequence[ClipFile],
        config: TrainConfig,
        cache: LatentCache | None,
        prior: Sequence[ClipFile] = (),
        condition: Condition | None = None,
    ) -> None:
        self.condition = condition
        self.files = files
        self.config = config
        self.cache = cache
        self.prior = prior
        """Files of every second sample, where there are any."""

    def __getitem__(self, number: int) -> Sample:
        bad: list[tuple[int, str]] = []
        for attempt in range(len(self.files)):
            index, file = self._file_of(number, attempt)
            rng = random.Random(f"{self.config.seed} {number}")
            try:
                frames, condition = self._window(file, rng)
            except MediaError as error:
                bad.append((index, str(error)))
                if len(bad) > self.config.data.max_bad_files:
                    break
                continue
            dropped = rng.random() < self.config.caption_dropout
            if condition is not None and rng.random() < self._image_dropout:
                condition = torch.zeros_like(condition)
            return Sample(frames, "" if dropped else file.caption, tuple(bad), condition)
        raise TrainingError(bad_files_message([reason for _, reason in bad]))

    def _file_of(self, number: int, attempt: int) -> tuple[int, ClipFile]:
        """The file of a sample, and its number among all files; later attempts take others."""
        files, before = self.files, 0
        if self.prior:
            if number % 2:
                files, before = self.prior, len(self.files)
            number //= 2
        number += attempt
        count = len(files)
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + number // count)
        index = int(torch.randperm(count, generator=generator)[number % count])
        return before + index, files[index]

    @property
    def _image_dropout(self) -> float:
        if self.config.stage != "ip-adapter":
            return 0.0
        given = self.config.image_dropout
        return 0.1 if given is None else given

    def _window(self, file: ClipFile, rng: random.Random) -> tuple[Tensor, Tensor | None]:
        """Frames, and the condition of the first of them."""
        data, wanted = self.config.data, self.config.num_frames
        flip = data.horizontal_flip and rng.random() < 0.5
        if self.cache is not None:
            moments = self.cache.read(file.path, flip=flip)
            indices = window(len(moments), wanted, data.sample_stride, rng)
            frames = moments[indices]
            if self.condition is None:
                return frames, None
            pixels = pixels_at(file.path, indices[:1], data.sample_size)
        else:
            pixels = decode(file.path, wanted, data.sample_stride, data.sample_size, rng)
            frames = pixels.flip(3) if flip else pixels
            if self.condition is None:
                return frames, None
        condition = self.condition(file.path, pixels[0])
        return frames, condition.flip(-1) if flip else condition


def bad_files_message(reasons: Sequence[str]) -> str:
    """The sentence that ends a run with too many unreadable files."""
    return (
        f"{len(reasons)} unreadable files: {'; '.join(reasons)}; "
        "mend or remove them, or raise train_data.max_bad_files"
    )


def decode(
    path: Path, wanted: int, stride: int, size: tuple[int, int], rng: random.Random
) -> Tensor:
    """A random window of a video, or the one frame of a picture: f 3 h w in [-1, 1]."""
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return to_pixels(read_picture(path)[None], size)
    with open_video(path) as video:
        indices = window(video.num_frames, wanted, stride, rng)
        return to_pixels(video.read_frames(indices), size)


def pixels_at(path: Path, indices: Sequence[int], size: tuple[int, int]) -> Tensor:
    """Some frames of a video, or the one frame of a picture: f 3 h w in [-1, 1]."""
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return to_pixels(read_picture(path)[None], size)
    with open_video(path) as video:
        return to_pixels(video.read_frames(indices), size)


def window(total: int, wanted: int, stride: int, rng: random.Random) -> list[int]:
    """Frame numbers of a random window (official dataset.py): short videos repeat frames."""
    length = min(total, (wanted - 1) * stride + 1)
    start = rng.randint(0, total - length)
    if wanted == 1:
        return [start]
    return [start + i * (length - 1) // (wanted - 1) for i in range(wanted)]


def to_pixels(frames: np.ndarray, size: tuple[int, int]) -> Tensor:
    """f h w 3 uint8, scaled to cover `size` and cut to its middle: f 3 h w in [-1, 1]."""
    pixels = torch.tensor(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
    height, width = pixels.shape[2:]
    scale = max(size[0] / height, size[1] / width)
    if (height, width) != size:
        covering = (max(round(height * scale), size[0]), max(round(width * scale), size[1]))
        pixels = F.interpolate(pixels, covering, mode="bilinear", antialias=True)
    top, left = (pixels.shape[2] - size[0]) // 2, (pixels.shape[3] - size[1]) // 2
    return pixels[:, :, top : top + size[0], left : left + size[1]]
