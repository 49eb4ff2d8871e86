"""Training data: the list of clips, and windows of frames from them.

Every random draw depends only on the seed and the sample's number, so a resumed run sees exactly
the samples of an uninterrupted one.

Legend: f frames, h w pixels.
"""

import csv
import random
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import MediaError, TrainingError
from ..media.image import read_image
from ..media.opening import IMAGE_SUFFIXES as IMAGES
from ..media.opening import is_hidden
from ..media.video import Video, open_video
from .cache import LatentCache
from .camera_clips import camera_clip
from .config import ON_CLIPS, TrainConfig
from .pixels import to_pixels

ReadCondition = Callable[[Path, Tensor], Tensor]
"""A stage's further input for a sample, from its file and its first frame (3 h w in [-1, 1]).

It pickles: on Windows and macOS the loader's workers are spawned."""
VIDEO_SUFFIXES = {".mp4", ".mkv", ".mov", ".avi", ".webm", ".gif", ".m4v", ".mpg", ".mpeg", ".ts"}
IMAGE_SUFFIXES = IMAGES - VIDEO_SUFFIXES


@dataclass(frozen=True)
class ClipFile:
    """One video or image, and its caption."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Sample:
    """One window: pixels f 3 h w in [-1, 1], or cached moments f 2c h w."""

    frames: Tensor
    caption: str
    unreadable: tuple[tuple[int, str], ...]
    """Number and reason of each unreadable file that was tried before."""
    condition: Tensor | None = None
    """From the stage's ReadCondition, mirrored with the frames; zeros if dropped."""


def list_clips(config: TrainConfig) -> list[ClipFile]:
    """The clips of a CSV, or of a folder with caption files; at least one."""
    folder = Path(config.data.video_folder)
    if not folder.is_dir():
        raise TrainingError(
            f"{folder}: no such folder; set train_data.video_folder to where the videos are"
        )
    if config.data.csv_path is not None:
        clips = _listed(Path(config.data.csv_path), folder)
    else:
        clips = _captioned(folder, config)
    if not clips:
        raise TrainingError(
            f"{folder}: no videos in this folder; put videos with a .txt caption beside each, "
            "or name a CSV in train_data.csv_path"
        )
    return clips


def _listed(table: Path, folder: Path) -> list[ClipFile]:
    if not table.is_file():
        raise TrainingError(f"{table}: no such file; train_data.csv_path must name a CSV")
    with _reading(table), table.open(newline="", encoding=_encoding(table)) as file:
        rows = csv.DictReader(file)
        missing = {"videoid", "name"} - set(rows.fieldnames or ())
        if missing:
            raise TrainingError(
                f"{table}: no column {', '.join(sorted(missing))}; the first line must name the "
                "columns videoid, name and page_dir"
            )
        return [ClipFile(folder / f"{row['videoid']}.mp4", row["name"] or "") for row in rows]


def _captioned(folder: Path, config: TrainConfig) -> list[ClipFile]:
    suffixes = set(IMAGE_SUFFIXES)
    if config.data.camera is None:
        suffixes = VIDEO_SUFFIXES if config.stage in ON_CLIPS else VIDEO_SUFFIXES | IMAGE_SUFFIXES
    files = (path for path in folder.iterdir() if not is_hidden(path))
    paths = sorted(path for path in files if path.suffix.lower() in suffixes)
    without = [p.name for p in paths if not p.with_suffix(".txt").is_file()]
    if without:
        raise TrainingError(
            f"{folder}: no caption file for {', '.join(without[:5])}"
            f"{' and others' if len(without) > 5 else ''}; write one line into NAME.txt beside each"
        )
    return [ClipFile(path, _caption(path.with_suffix(".txt"))) for path in paths]


def _caption(path: Path) -> str:
    with _reading(path):
        return path.read_text(_encoding(path)).strip()


def _encoding(path: Path) -> str:
    """UTF-16 if the file begins with its mark, as some spreadsheets write it, else UTF-8."""
    with path.open("rb") as file:
        return "utf-16" if file.read(2) in (BOM_UTF16_LE, BOM_UTF16_BE) else "utf-8-sig"


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (UnicodeError, csv.Error) as error:
        message = f"{path}: cannot be read ({error}); save it as UTF-8, a caption a line"
        raise TrainingError(message) from error


@dataclass(frozen=True)
class Batch:
    """Samples of one length; the data loader pins its memory for a GPU."""

    frames: Tensor
    """(b f) 3 h w, or (b f) 2c h w."""
    captions: list[str]
    unreadable: tuple[tuple[int, str], ...]
    conditions: Tensor | None
    """b ..."""

    def pin_memory(self) -> "Batch":
        """A copy in page-locked memory."""
        conditions = None if self.conditions is None else self.conditions.pin_memory()
        return replace(self, frames=self.frames.pin_memory(), conditions=conditions)


def collate(samples: Sequence[Sample]) -> Batch:
    """One batch of samples of one length."""
    conditions = [sample.condition for sample in samples if sample.condition is not None]
    return Batch(
        frames=torch.cat([sample.frames for sample in samples]),
        captions=[sample.caption for sample in samples],
        unreadable=tuple(file for sample in samples for file in sample.unreadable),
        conditions=torch.stack(conditions) if conditions else None,
    )


class Clips(Dataset[Sample]):
    """Endless samples by number; each pass over the files is another permutation."""

    def __init__(
        self,
        files: Sequence[ClipFile],
        config: TrainConfig,
        cache: LatentCache | None,
        prior: Sequence[ClipFile] = (),
        condition: ReadCondition | None = None,
    ) -> None:
        self.files = files
        self.prior = prior
        """Files of every second sample, if there are any."""
        self.config, self.cache, self.condition = config, cache, condition

    def __getitem__(self, number: int) -> Sample:
        unreadable: list[tuple[int, str]] = []
        for attempt in range(len(self.files)):
            index, file = self._file_of(number, attempt)
            rng = random.Random(f"{self.config.seed} {number}")
            try:
                frames, condition = self._window(file, rng)
            except MediaError as error:
                unreadable.append((index, str(error)))
                if len(unreadable) > self.config.data.max_bad_files:
                    break
                continue
            dropped = rng.random() < self.config.caption_dropout
            if condition is not None and rng.random() < self._image_dropout:
                condition = torch.zeros_like(condition)
            return Sample(frames, "" if dropped else file.caption, tuple(unreadable), condition)
        raise unreadable_files([reason for _, reason in unreadable])

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
        share = self.config.image_dropout
        return 0.1 if share is None else share

    def _window(self, file: ClipFile, rng: random.Random) -> tuple[Tensor, Tensor | None]:
        """Frames of a window, and the condition of its first frame."""
        data, count = self.config.data, self.config.num_frames
        flip = data.horizontal_flip and rng.random() < 0.5
        pixels: Tensor | None = None
        if self.cache is not None:
            moments = self.cache.read(file.path, flip=flip)
            indices = window(len(moments), count, data.sample_stride, rng)
            frames = moments[indices]
            if self.condition is not None:
                pixels = read_pixels(file.path, data.sample_size, lambda video: indices[:1])
        else:
            if data.camera is not None:
                pixels = camera_clip(read_image(file.path), data.camera, count, data.sample_size)
            else:
                pixels = read_window(file.path, count, data.sample_stride, data.sample_size, rng)
            frames = pixels.flip(3) if flip else pixels
        if self.condition is None or pixels is None:
            return frames, None
        condition = self.condition(file.path, pixels[0])
        return frames, condition.flip(-1) if flip else condition


def unreadable_files(reasons: Sequence[str]) -> TrainingError:
    """The error that ends a run with too many unreadable files."""
    return TrainingError(
        f"{len(reasons)} unreadable files: {'; '.join(reasons)}; "
        "repair or remove them, or raise train_data.max_bad_files"
    )


def read_window(
    path: Path, count: int, stride: int, size: tuple[int, int], rng: random.Random
) -> Tensor:
    """A random window of a video, or the one frame of an image: f 3 h w in [-1, 1]."""
    return read_pixels(path, size, lambda video: window(video.num_frames, count, stride, rng))


def read_pixels(
    path: Path,
    size: tuple[int, int],
    choose: Callable[[Video], Sequence[int]] | None = None,
) -> Tensor:
    """All frames of a video, or those that `choose` numbers: f 3 h w in [-1, 1].

    An image has one frame.
    """
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return to_pixels(read_image(path)[None], size)
    with open_video(path) as video:
        frames = video.read_all() if choose is None else video.read_frames(choose(video))
    return to_pixels(frames, size)


def window(total: int, count: int, stride: int, rng: random.Random) -> list[int]:
    """Frame numbers of a random window (official dataset.py): short videos repeat frames."""
    length = min(total, (count - 1) * stride + 1)
    start = rng.randint(0, total - length)
    if count == 1:
        return [start]
    return [start + i * (length - 1) // (count - 1) for i in range(count)]


def to_image(pixels: Tensor) -> np.ndarray:
    """One frame, 3 h w in [-1, 1] -> h w 3 uint8."""
    return ((pixels.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
