"""The use case `inject`: base, LoRAs and motion module into one folder."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints.export import write_pipeline_folder
from ..checkpoints.files import digest
from ..errors import CheckpointError
from ..jobs import defaults_of
from ..motion import MotionConfig, inflate
from .model import Found, Parts, files_of, find, load


@dataclass(frozen=True)
class InjectPlan:
    """What will be joined, all found and fitting."""

    found: Found
    output: Path
    motion: MotionConfig


def plan(parts: Parts, output: Path, *, offline: bool = False) -> InjectPlan:
    """Find and check every part; nothing is loaded or written."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(f"{output}: exists already and is not empty; choose another name")
    found = find(parts, offline=offline)
    return InjectPlan(found, output, found.motion_config)


def run(planned: InjectPlan, *, offline: bool = False) -> Path:
    """Merge and write; returns the folder, which appears whole or not at all."""
    base, motion = load(planned.found, offline=offline)
    inflate(base.unet, motion).deflate()
    record = {
        "sources": list(_sources(planned.found, offline)),
        "defaults": defaults_of(planned.found.parts.base),
    }
    write_pipeline_folder(base, motion, planned.output, record)
    return planned.output


def _sources(found: Found, offline: bool) -> Iterator[dict[str, object]]:
    for role, path, scale in files_of(found, offline=offline):
        source: dict[str, object] = {"role": role, "path": str(path), "sha256": digest(path)}
        if scale is not None:
            source["scale"] = scale
        yield source
