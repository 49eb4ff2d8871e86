"""Prompt files and presets, read into frozen Job records; no tensor code."""

from .presets import (
    KEPT_FOLDER,
    RECORD_FILE,
    defaults_of,
    kept_adapters,
    load_preset,
    preset_names,
)
from .prompt_file import job_from_options, load_prompt_file, parse_prompts
from .records import FORMATS, Adapter, Job, Output
from .sidecar import dump_job

__all__ = [
    "FORMATS",
    "KEPT_FOLDER",
    "Adapter",
    "Job",
    "RECORD_FILE",
    "Output",
    "defaults_of",
    "dump_job",
    "job_from_options",
    "kept_adapters",
    "load_preset",
    "load_prompt_file",
    "parse_prompts",
    "preset_names",
]
