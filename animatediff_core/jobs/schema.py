"""A JSON Schema of our own prompt files, for editors, made from the records."""

from collections.abc import Mapping
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from .extending import FILE_KEYS
from .presets import preset_names
from .record import kinds_of, record_in
from .records import MODEL_FIELDS, Job

Schema = dict[str, Any]
_NULL: Schema = {"type": "null"}
_SEED: Schema = {"type": "integer", "minimum": -1, "maximum": 2**64 - 1}


def prompt_schema() -> Schema:
    """The schema, draft 7, as editors read it. It knows keys, types and ranges; settings that do
    not go together are reported when the file is read."""
    whole = Job.model_json_schema(ref_template="#/definitions/{model}", schema_generator=_Generator)
    records, job = whole["$defs"], whole["anyOf"][0]["properties"]
    description = job["seed"]["description"]
    seeds = {"type": "array", "items": {"anyOf": [_SEED, _NULL]}}
    job["seed"] = {"description": description, "anyOf": [_SEED, seeds, _NULL]}
    matrix = _matrix(job, records)
    defaults = {**_closed(job), "description": "Settings of all jobs that have no other."}
    keys: dict[str, Schema] = {
        **{key: job[key] for key in MODEL_FIELDS},
        "preset": {
            "enum": [*preset_names(), None],
            "description": "A model with the settings that suit it; default: tiny.",
        },
        "extends": {
            "type": ["string", "null"],
            "description": "Another prompt file, under this one; relative to it.",
        },
        "defaults": {"anyOf": [defaults, _NULL]},
        "matrix": matrix,
        "jobs": {
            "description": "The clips.",
            "type": "array",
            "minItems": 1,
            "items": {"anyOf": [{"type": "string"}, _closed({**job, "matrix": matrix})]},
        },
        "made_with": {
            "type": "object",
            "description": "What a clip was made with; written, not read.",
        },
    }
    assert keys.keys() == set(FILE_KEYS)
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "animatediff prompt file",
        "definitions": records,
        **_closed(keys),
    }


def _matrix(job: Mapping[str, Schema], records: Mapping[str, Schema]) -> Schema:
    """Lists of values for each setting, also dotted."""
    values = dict(job)
    for key, kind in kinds_of(Job).items():
        record = record_in(kind)
        if record is not None:
            inner = records[record.__name__]["anyOf"][0]["properties"]
            values |= {f"{key}.{name}": one for name, one in inner.items()}
    lists = {
        key: {
            "type": "array",
            "minItems": 1,
            "items": {k: v for k, v in one.items() if k != "description"},
        }
        for key, one in values.items()
    }
    description = "A job for every combination of these settings' values."
    return {"description": description, "anyOf": [_closed(lists), _NULL]}


class _Generator(GenerateJsonSchema):
    """Draft 7, with the short forms that a record takes for its settings."""

    def tuple_schema(self, schema: core_schema.TupleSchema) -> JsonSchemaValue:
        made = super().tuple_schema(schema)
        if "prefixItems" in made:
            return {"items": made.pop("prefixItems"), **made}
        return {"anyOf": [made, made["items"]]}

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        made = super().dict_schema(schema)
        return {**made, "minProperties": 1}

    def model_field_schema(self, schema: core_schema.ModelField) -> JsonSchemaValue:
        made = super().model_field_schema(schema)
        default = {"default": made.pop("default")} if "default" in made else {}
        forms = made["anyOf"] if made.keys() == {"anyOf"} else [made]
        if _NULL in forms and any("$ref" in form for form in forms):
            forms = [*forms, {"const": False}]
        return {"anyOf": [*(form for form in forms if form != _NULL), _NULL], **default}

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _in_lines(schema: Any) -> Any:
    """A schema with each description in one line."""
    if isinstance(schema, list):
        return [_in_lines(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: " ".join(value.split())
        if key == "description" and isinstance(value, str)
        else _in_lines(value)
        for key, value in schema.items()
    }


def _closed(properties: Mapping[str, Schema]) -> Schema:
    return {"type": "object", "properties": dict(properties), "additionalProperties": False}
