"""Prior preservation (DreamBooth, arXiv 2208.12242): images that the base model makes itself.

Training on them too preserves what the model knows of the class.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..checkpoints.base_model import BaseModel
from ..media.atomic import write_text
from ..media.image import write_image
from .clips import ClipFile
from .config import TrainConfig
from .validation import sample_images

AT_ONCE = 8
STEPS, GUIDANCE = 25, 5.0


def prior_files(config: TrainConfig, folder: Path) -> list[ClipFile]:
    """The files of the images, prompts in turn; none outside the dreambooth stage."""
    prompts = config.prior_prompts or ()
    count = (config.prior_images or 100) if prompts else 0
    return [
        ClipFile(folder / f"{number:04}.png", prompts[number % len(prompts)])
        for number in range(count)
    ]


def make_prior(
    config: TrainConfig, base: BaseModel, files: Sequence[ClipFile]
) -> Iterator[tuple[int, int]]:
    """Sample the missing images; yields how many are done of how many."""
    for prompt in dict.fromkeys(file.caption for file in files):
        missing = [i for i, f in enumerate(files) if f.caption == prompt and not f.path.exists()]
        for first in range(0, len(missing), AT_ONCE):
            numbers = missing[first : first + AT_ONCE]
            images = sample_images(config, base, prompt, numbers, (STEPS, GUIDANCE))
            for number, image in zip(numbers, images, strict=True):
                write_text(files[number].path.with_suffix(".txt"), prompt + "\n")
                write_image(image, files[number].path)
            yield sum(file.path.exists() for file in files), len(files)
