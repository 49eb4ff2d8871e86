"""The JSON Schema for editors takes what the reader takes, and refuses what it refuses."""

import re
from pathlib import Path

import pytest
import yaml

from animatediff_core.errors import PromptFileError
from animatediff_core.jobs import Job, parse_prompts, prompt_schema, setting
from animatediff_core.training.config import TrainConfig

ROOT = Path(__file__).parent.parent
SCHEMA = prompt_schema()
TYPES = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool,
         "number": (int, float), "null": type(None)}  # fmt: skip
KEYWORDS = {"$schema", "title", "definitions", "description", "type", "properties", "items", "enum",
            "additionalProperties", "patternProperties", "anyOf", "$ref", "const", "required",
            "minItems", "maxItems", "minProperties", "minimum", "maximum",
            "exclusiveMinimum", "default"}  # fmt: skip


def fits(value: object, schema: dict) -> bool:
    """Whether a value is valid, for the keywords of JSON Schema that ours uses."""
    assert schema.keys() <= KEYWORDS
    if "$ref" in schema:
        return fits(value, SCHEMA["definitions"][schema["$ref"].removeprefix("#/definitions/")])
    kinds = schema.get("type", [])
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if kinds and not any(isinstance(value, TYPES[kind]) for kind in kinds):
        return False
    if isinstance(value, bool) and kinds and "boolean" not in kinds:
        return False
    if "anyOf" in schema and not any(fits(value, one) for one in schema["anyOf"]):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "const" in schema and value is not schema["const"]:
        return False
    if isinstance(value, dict):
        return _object_fits(value, schema)
    if isinstance(value, list):
        items = schema.get("items", {})
        each = items if isinstance(items, list) else [items] * len(value)
        most = schema.get("maxItems", len(value))
        return schema.get("minItems", 0) <= len(value) <= most and all(map(fits, value, each))
    if isinstance(value, int | float):
        above = value > schema.get("exclusiveMinimum", value - 1)
        return above and schema.get("minimum", value) <= value <= schema.get("maximum", value)
    return True


def _object_fits(value: dict, schema: dict) -> bool:
    patterns = schema.get("patternProperties", {})
    for key, item in value.items():
        kinds = [one for pattern, one in patterns.items() if re.search(pattern, str(key))]
        kinds += [schema["properties"][key]] if key in schema.get("properties", {}) else []
        others = schema.get("additionalProperties", {})
        if not kinds and others is False:
            return False
        kinds = kinds or [others]
        if not all(fits(item, one) for one in kinds):
            return False
    enough = len(value) >= schema.get("minProperties", 0)
    return enough and value.keys() >= set(schema.get("required", []))


@pytest.mark.parametrize("file", sorted((ROOT / "prompts").glob("*.yaml")), ids=lambda f: f.stem)
def test_every_shipped_prompt_file_fits(file):
    assert fits(yaml.safe_load(file.read_text()), SCHEMA)


JOB = "jobs: [{prompt: a, seed: 1, %s}]"
SAID = {
    JOB % "steps: 3": True,
    JOB % "window: 8": True,
    JOB % "window: {length: 8, fuse: flat}": True,
    JOB % "free_init: true": True,
    JOB % "free_init: false": True,
    JOB % "noise: mixed": True,
    JOB % "guidance_schedule: {0: 9, 0.5: 3}": True,
    JOB % "guidance_interval: [0.1, 0.9]": True,
    JOB % "betas: [0.001, 0.02, linear]": True,
    JOB % "output: {max_size: 2MB, codec: null}": True,
    JOB % "loras: x.safetensors": True,
    JOB % "loras: [x.safetensors, {path: y, scale: 2}]": True,
    JOB % "negative_prompt: {0: x, 8: y}": True,
    JOB % "upscale: null": True,
    JOB % "motion_strength: {scale: 1.2, blocks: {mid_block: 0.5}, frames: {0: 1}}": True,
    JOB % "motion_strength: {blocks: {mid_block: high}}": False,
    "matrix: {output.fps: [4, 8], steps: [1]}\njobs: [a]": True,
    "jobs: [{prompt: a, seed: [1, -1, null]}]": True,
    JOB % "stpes: 3": False,
    JOB % "steps: many": False,
    JOB % "window: {lenght: 8}": False,
    JOB % "window: wide": False,
    JOB % "noise: mixd": False,
    JOB % "free_init: {fast: 1}": False,
    JOB % "guidance_interval: [0.1]": False,
    JOB % "betas: linear": False,
    JOB % "output: {fsp: 8}": False,
    JOB % "loras: [{file: x}]": False,
    JOB % "negative_prompt: {a: x}": False,
    "matrix: {output.fsp: [4]}\njobs: [a]": False,
    "matrix: {steps: 4}\njobs: [a]": False,
    "job: [a]": False,
    "jobs: []": False,
    "preset: sd51\njobs: [a]": False,
    "jobs: [{prompt: a, seed: x}]": False,
    "jobs: [{prompt: a, seed: -2}]": False,
}


@pytest.mark.parametrize("text", SAID)
def test_schema_and_reader_are_of_one_mind(text):
    assert fits(yaml.safe_load(text), SCHEMA) == SAID[text]
    try:
        read = bool(parse_prompts(text, "f", Path()))
    except PromptFileError:
        read = False
    assert read == SAID[text]


def test_fields_are_explained():
    window = SCHEMA["definitions"]["Window"]["anyOf"][0]["properties"]["overlap"]
    assert window["description"].startswith("Frames that neighbouring windows share, below length")
    seed = SCHEMA["properties"]["defaults"]["anyOf"][0]["properties"]["seed"]
    assert seed["description"].startswith("0 to 2**64-1; a list makes a job each")


def test_every_setting_is_explained():
    for record in (Job, TrainConfig):
        for name in record.model_fields:
            assert setting(record, name).meaning, name
