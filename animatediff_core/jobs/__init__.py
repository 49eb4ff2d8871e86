"""Prompt files and presets, read into frozen Job records; no tensor code."""

from .camera import Move
from .naming import output_name
from .output import FORMATS, Encoding, Output
from .presets import (
    KEPT_FOLDER,
    RECORD_FILE,
    defaults_of,
    kept_adapters,
    load_preset,
    preset_names,
)
from .prompt_file import (
    job_from_options,
    load_prompt_file,
    parse_prompts,
    parse_settings,
    valid_jobs,
)
from .records import Adapter, Embedding, Job
from .reference import Setting, reference, setting
from .sampling import FreeInit, Fuse, Noise, Upscale, Window, WindowSchedule, first_step
from .schema import prompt_schema
from .sidecar import dump_job, job_settings

__all__ = [
    "FORMATS",
    "KEPT_FOLDER",
    "RECORD_FILE",
    "Adapter",
    "Embedding",
    "Encoding",
    "FreeInit",
    "Fuse",
    "Job",
    "Move",
    "Noise",
    "Output",
    "Setting",
    "Upscale",
    "Window",
    "WindowSchedule",
    "defaults_of",
    "dump_job",
    "first_step",
    "job_from_options",
    "job_settings",
    "kept_adapters",
    "load_preset",
    "load_prompt_file",
    "output_name",
    "parse_prompts",
    "parse_settings",
    "preset_names",
    "prompt_schema",
    "reference",
    "setting",
    "valid_jobs",
]
