"""Prompt files and presets, read into frozen Job records; no tensor code."""

from .presets import RECORD_FILE, defaults_of, load_preset, preset_names
from .prompt_file import job_from_options, load_prompt_file, parse_prompts
from .records import FORMATS, Adapter, Job, Output
from .sidecar import dump_job

__all__ = [
    "FORMATS",
    "Adapter",
    "Job",
    "RECORD_FILE",
    "Output",
    "defaults_of",
    "dump_job",
    "job_from_options",
    "load_preset",
    "load_prompt_file",
    "parse_prompts",
    "preset_names",
]
