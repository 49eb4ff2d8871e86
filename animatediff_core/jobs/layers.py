"""Layers of settings: preset, a file's defaults, job and command line."""

from collections.abc import Mapping
from typing import Any

from .records import Job

_OF_MODULE = ("motion_version", "betas")
"""Settings that belong to the motion module that they are given with, and to no other."""


def laid_over(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a job, `upper` over `lower`. If `upper` names another motion module or base
    model, the settings that belong to the lower one's are left out."""
    if "motion" in upper and upper["motion"] != lower.get("motion"):
        lower = {key: value for key, value in lower.items() if key not in _OF_MODULE}
    if "base" in upper and upper["base"] != lower.get("base"):
        lower = {key: value for key, value in lower.items() if key != "variant"}
    return Job.merged(lower, upper)
