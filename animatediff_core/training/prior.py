"""Prior preservation (DreamBooth, arXiv 2208.12242): pictures that the base itself makes.

They are trained beside the few given ones, so that the model keeps what it knew of the class.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..checkpoints.base_model import BaseModel
from ..media import write_picture, write_text
from .clips import ClipFile
from .config import TrainConfig
from .validation import sample_stills

AT_ONCE = 8
STEPS, GUIDANCE = 25, 5.0


def prior_files(config: TrainConfig, folder: Path) -> list[ClipFile]:
    """Where the pictures belong, the prompts in turn; none outside the dreambooth stage."""
    prompts = config.prior_prompts or ()
    count = (config.prior_images or 100) if prompts else 0
    return [
        ClipFile(folder / f"{number:04}.png", prompts[number % len(prompts)])
        for number in range(count)
    ]


def make_prior(
    config: TrainConfig, base: BaseModel, files: Sequence[ClipFile]
) -> Iterator[tuple[int, int]]:
    """Sample the pictures that are not there yet; yields how many are done of how many."""
    for prompt in dict.fromkeys(file.caption for file in files):
        missing = [i for i, f in enumerate(files) if f.caption == prompt and not f.path.exists()]
        for first in range(0, len(missing), AT_ONCE):
            numbers = missing[first : first + AT_ONCE]
            pictures = sample_stills(config, base, prompt, numbers, (STEPS, GUIDANCE))
            for number, picture in zip(numbers, pictures, strict=True):
                write_text(files[number].path.with_suffix(".txt"), prompt + "\n")
                write_picture(picture, files[number].path)
            yield sum(file.path.exists() for file in files), len(files)
