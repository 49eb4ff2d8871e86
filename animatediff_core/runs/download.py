"""The use case `download`: fetch once what later runs use offline."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import AnimateDiffError
from ..jobs import load_preset
from .model import Parts, find


def run(
    presets: Sequence[str], *, offline: bool = False
) -> Iterator[tuple[str, tuple[Path, Path] | AnimateDiffError]]:
    """(preset, base and motion module on this machine), or why it cannot be had.

    Raises PromptFileError where a preset does not exist, before anything is fetched.
    """
    settings = {name: load_preset(name) for name in presets}
    for name, preset in settings.items():
        try:
            found = find(Parts(base=preset["base"], motion=preset["motion"]), offline=offline)
        except AnimateDiffError as error:
            yield name, error
        else:
            yield name, (found.base, found.motion)
