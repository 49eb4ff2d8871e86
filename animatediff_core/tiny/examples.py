"""Writes the files of `animatediff examples`: prompt files and two small drawn training sets."""

import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from ..errors import AnimateDiffError
from .clips import write_clips
from .members import member_named, write_images

CLIPS = 24
IMAGES = 40
_FIRST = "first-clip.yaml"


def write_examples(folder: Path) -> Iterator[Path]:
    """Write everything into a new folder; yields each file or folder that a command takes.

    Raises AnimateDiffError if the folder holds files.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AnimateDiffError(f"{folder}: is not empty; name a new folder")
    shutil.copytree(_prompts(), folder / "prompts")
    yield folder / "prompts"
    for _ in write_clips(folder, count=CLIPS):
        pass
    write_images(member_named("tiny-slim"), folder / "pictures", IMAGES)
    for name in ("motion.yaml", "lora.yaml"):
        source = Path(__file__).with_name(name.replace(".", "_example."))
        yield Path(shutil.copyfile(source, folder / name))


def _prompts() -> Path:
    """The prompt files: those of the checkout, else those that the wheel has installed."""
    places = [Path(__file__).parents[2] / "prompts" / _FIRST]
    try:
        installed = files("animatediff") or []
    except PackageNotFoundError:
        installed = []
    places += [Path(str(one.locate())) for one in installed if one.name == _FIRST]
    for place in places:
        if place.is_file():
            return place.parent
    raise AnimateDiffError("this installation has no prompt files; install animatediff again")
