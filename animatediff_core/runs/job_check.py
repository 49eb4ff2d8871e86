"""What of a job's text and sampler can be refused before anything is loaded."""

import json
from pathlib import Path

from ..diffusion.encoders import most_clip_skip
from ..diffusion.prompt_syntax import check_prompt
from ..diffusion.schedules import check_scheduler
from ..errors import AnimateDiffError, CheckpointError, PromptFileError
from ..jobs import Job
from .model import Found

_LAYERS = {"SD1.5": (12,), "SD2": (23,), "SDXL": (12, 32)}
"""Of the text encoders in a single file, whose family says them."""
_DEFAULT_LAYERS = 12
"""transformers' own, where a configuration names none."""


def check_text(job: Job, found: Found) -> None:
    """Prompts that only other tools understand, and a clip_skip beyond the text encoder."""
    for key in ("prompt", "negative_prompt"):
        for frame, text in getattr(job, key).items():
            try:
                check_prompt(text)
            except PromptFileError as error:
                raise PromptFileError(f"{job.name}: {key} of frame {frame}: {error}") from error
    layers = _text_layers(found)
    if layers and job.clip_skip > (most := most_clip_skip(layers)):
        raise CheckpointError(
            f"{job.name}: clip_skip {job.clip_skip}, but the text encoder of {job.base} knows "
            f"1 to {most}"
        )


def check_sampler(job: Job, found: Found) -> None:
    """A sampler's name, its packages, and what it cannot do with this model and so many steps."""
    try:
        check_scheduler(
            job.scheduler, found.motion_config, steps=job.steps,
            prediction_type=job.prediction_type or "epsilon",
        )  # fmt: skip
    except AnimateDiffError as error:
        raise CheckpointError(f"{job.name}: {error}") from error


def _text_layers(found: Found) -> tuple[int, ...]:
    """How many layers each text encoder has, as far as files and family say."""
    if not found.base.is_dir():
        return _LAYERS.get(found.family, ())
    files = sorted(found.base.glob("text_encoder*/config.json"))
    return tuple(_layers_of(file) for file in files)


def _layers_of(file: Path) -> int:
    return int(json.loads(file.read_text()).get("num_hidden_layers", _DEFAULT_LAYERS))
