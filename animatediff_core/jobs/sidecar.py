"""The sidecar: a prompt file beside each clip that makes the same clip again."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from .records import Job


def dump_job(job: Job, *, made_with: Mapping[str, Any] | None = None) -> str:
    """YAML that `load_prompt_file` reads back as exactly this job, wherever it is run from.

    `made_with` records what the clip was made with (device, versions, digests); it is not read.
    """
    settings: dict[str, Any] = {}
    for key, value in asdict(job).items():
        if key in ("base", "motion", "vae"):
            value = _absolute(value)
        elif key in ("loras", "motion_loras"):
            value = [{**one, "path": _absolute(one["path"])} for one in value]
        elif key == "embeddings":
            value = [_absolute(path) for path in value]
        elif key in ("prompt", "negative_prompt"):
            value = value[0] if list(value) == [0] else dict(value)
        settings[key] = value
    # base stands above the jobs too, so that no preset adds what the job did not have
    content: dict[str, Any] = {"base": settings["base"], "jobs": [settings]}
    if made_with:
        content["made_with"] = dict(made_with)
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def _absolute(path: str | None) -> str | None:
    if path is None or not Path(path).exists():
        return path
    return str(Path(path).absolute())
