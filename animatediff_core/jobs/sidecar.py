"""The sidecar: a prompt file beside each clip that makes the same clip again."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from .layers import with_sources
from .presets import OWN
from .records import Job
from .sampling import Window

_ALWAYS = OWN | {"name", "prompt", "seed", "base"}
"""What a base model alone would decide, and what tells one job from another."""


def dump_job(job: Job, *, made_with: Mapping[str, Any] | None = None) -> str:
    """YAML that `load_prompt_file` reads back as exactly this job, wherever it is run from.

    Of the job it has what is not as usual. `made_with` records what the clip was made with
    (device, versions, digests); it is not read.
    """
    settings = job_settings(job)
    # base stands above the jobs too, so that no preset adds what the job did not have
    content: dict[str, Any] = {"base": settings["base"], "jobs": [settings]}
    if made_with:
        content["made_with"] = dict(made_with)
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def job_settings(job: Job) -> dict[str, Any]:
    """A job as a prompt file says it: plain values of what is not as usual, paths absolute."""
    settings = with_sources(_plain(job, _ALWAYS), _absolute)
    for key in ("prompt", "negative_prompt"):
        if list(settings.get(key, ())) == [0]:
            settings[key] = settings[key][0]
    return settings


def _plain(value: Any, always: frozenset[str] = frozenset()) -> Any:
    """A record as a mapping of those fields that are not as usual."""
    if isinstance(value, Window):  # of which one field follows from another
        return asdict(value)
    if is_dataclass(value):
        written = {}
        for field in fields(value):
            own = getattr(value, field.name)
            factory = field.default_factory
            usual = field.default if factory is MISSING else factory()
            if field.name in always or usual is MISSING or own != usual:
                written[field.name] = _plain(own)
        return written
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return value


def _absolute(name: str) -> str:
    return str(Path(name).absolute()) if Path(name).exists() else name
