"""Prompt files and presets, read into frozen Job records; no tensor code."""

from .output import FORMATS, Output
from .presets import (
    KEPT_FOLDER,
    RECORD_FILE,
    defaults_of,
    kept_adapters,
    load_preset,
    preset_names,
)
from .prompt_file import job_from_options, load_prompt_file, parse_prompts
from .records import Adapter, Job
from .sampling import FreeInit, Noise, Upscale, Window
from .sidecar import dump_job

__all__ = [
    "FORMATS",
    "FreeInit",
    "Noise",
    "Upscale",
    "Window",
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
