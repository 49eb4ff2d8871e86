"""The sidecar: a prompt file beside each clip that makes the same clip again."""

from collections.abc import Mapping
from typing import Any

import yaml

from .presets import OWN
from .records import Job

_ALWAYS = OWN | {"name", "prompt", "seed", "base"}
"""Settings that a base model alone would decide, and those that distinguish jobs."""


def dump_job(job: Job, *, made_with: Mapping[str, Any] | None = None) -> str:
    """YAML that `load_prompt_file` reads back as exactly this job, wherever it is run from.

    It has the job's settings that are not defaults. `made_with` records what the clip was made with
    (device, versions, digests); it is not read.
    """
    settings = job_settings(job)
    # base is above the jobs too, so that no preset adds what the job did not have
    content: dict[str, Any] = {"base": settings["base"], "jobs": [settings]}
    if made_with:
        content["made_with"] = dict(made_with)
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def job_settings(job: Job) -> dict[str, Any]:
    """A job as plain settings of a prompt file: those that are not defaults, paths absolute."""
    changed = job.model_dump(exclude_defaults=True) | job.model_dump(include=set(_ALWAYS))
    if job.window is not None:  # of which one setting follows from another
        changed["window"] = job.window.model_dump()
    for key in ("prompt", "negative_prompt"):
        if list(changed.get(key, ())) == [0]:
            changed[key] = changed[key][0]
    return {key: changed[key] for key in Job.model_fields if key in changed}
