"""A JSON Schema of our own prompt files, for editors, written from the typed fields."""

import ast
import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from .extending import FILE_KEYS
from .kinds import SOURCE
from .presets import preset_names
from .reader import hints_of, without_none
from .records import MODEL_FIELDS, Job

Schema = dict[str, Any]
_NULL: Schema = {"type": "null"}
_PLAIN: Mapping[Any, str] = {int: "integer", float: "number", str: "string", bool: "boolean"}
_SEED: Schema = {"type": "integer", "minimum": -1, "maximum": 2**64 - 1}


def prompt_schema() -> Schema:
    """The schema, draft 7, as editors read it. It knows keys and types; what values must fulfil
    together is told when the file is read."""
    records: dict[str, Schema] = {}
    job = _job_fields(records)
    own = {key: job[key] for key in MODEL_FIELDS}
    matrix = _matrix(job, records)
    settings = _closed(job)
    settings["description"] = "Settings of all jobs that do not say otherwise."
    whole: dict[str, Schema] = {
        **own,
        "preset": {"enum": [*preset_names(), None],
                   "description": "A model with the settings that suit it; default: tiny."},
        "extends": {"type": ["string", "null"],
                    "description": "Another prompt file, under this one; relative to it."},
        "defaults": {"anyOf": [settings, _NULL]},
        "matrix": matrix,
        "jobs": {
            "description": "The clips.",
            "type": "array",
            "minItems": 1,
            "items": {"anyOf": [{"type": "string"}, _closed({**job, "matrix": matrix})]},
        },
        "made_with": {"type": "object",
                      "description": "What a clip was made with; written, not read."},
    }  # fmt: skip
    assert whole.keys() == set(FILE_KEYS)
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "animatediff prompt file",
        "definitions": records,
        **_closed(whole),
    }


def _job_fields(records: dict[str, Schema]) -> dict[str, Schema]:
    """A job's keys. None of them must stand in the job itself: defaults may have it."""
    told = field_docs(Job)
    found = {key: _or_null(_of(kind, records)) for key, kind in hints_of(Job).items()}
    found["seed"] = {"anyOf": [_SEED, {"type": "array", "items": {"anyOf": [_SEED, _NULL]}}, _NULL]}
    told["seed"] = "0 to 2**64-1; a list makes a job each; -1, null or none draws one."
    return {key: _described(schema, told.get(key)) for key, schema in found.items()}


def _matrix(job: Mapping[str, Schema], records: Mapping[str, Schema]) -> Schema:
    """Lists of values for each field, also dotted."""
    values = dict(job)
    for key, kind in hints_of(Job).items():
        record = without_none(kind)[0]
        if is_dataclass(record):
            assert isinstance(record, type)
            inner = records[record.__name__]["properties"]
            values |= {f"{key}.{name}": one for name, one in inner.items()}
    lists = {
        key: {"type": "array", "minItems": 1, "items": {k: v for k, v in one.items()
                                                        if k != "description"}}
        for key, one in values.items()
    }  # fmt: skip
    schema = _or_null(_closed(lists))
    return _described(schema, "A job for every combination of these fields' values.")


def _of(kind: Any, records: dict[str, Schema]) -> Schema:
    """The schema of a type, shorthands included; records go into `records`."""
    kind, optional = without_none(kind)
    schema = _of_one(kind, records)
    if optional and is_dataclass(kind):
        schema = {"anyOf": [*schema["anyOf"], {"const": False}]}
    return _or_null(schema) if optional else schema


def _of_one(kind: Any, records: dict[str, Schema]) -> Schema:
    if get_origin(kind) is Annotated:
        plain, meaning = get_args(kind)
        own = _of_one(plain, records)
        return own if meaning == SOURCE else {"anyOf": [own, {"type": "string"}]}
    if kind in _PLAIN:
        return {"type": _PLAIN[kind]}
    if get_origin(kind) is Literal:
        return {"enum": list(get_args(kind))}
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        if inner[-1] is ...:
            one = _of(inner[0], records)
            return {"anyOf": [{"type": "array", "items": one}, one]}
        items = [_of(one, records) for one in inner]
        return {"type": "array", "items": items, "minItems": len(items), "maxItems": len(items)}
    if get_origin(kind) is Mapping:
        key, value = get_args(kind)
        pattern = {int: r"^-?\d+$", float: r"^\d*\.?\d+(e-?\d+)?$", str: "."}[key]
        one = _of(value, records)
        by_key = {"type": "object", "patternProperties": {pattern: one},
                  "additionalProperties": False, "minProperties": 1}  # fmt: skip
        return {"anyOf": [one, by_key]} if key is int else by_key
    return _of_record(kind, records)


def _of_record(record: type, records: dict[str, Schema]) -> Schema:
    """A record: its fields, its first field alone, or true where every field has a usual value."""
    name, hints = record.__name__, hints_of(record)
    if name not in records:
        told = field_docs(record)
        records[name] = _closed({})  # a place, for records within records
        records[name] |= _closed(
            {key: _described(_of(kind, records), told.get(key)) for key, kind in hints.items()}
        )
        records[name]["description"] = inspect.cleandoc(record.__doc__ or "")
        needed = [
            field.name
            for field in fields(record)
            if field.default is MISSING and field.default_factory is MISSING
        ]
        if needed:
            records[name]["required"] = needed
    forms = [{"$ref": f"#/definitions/{name}"}, _of(next(iter(hints.values())), records)]
    whole = [] if records[name].get("required") else [{"const": True}]
    return {"anyOf": [*forms, *whole]}


def field_docs(record: type) -> dict[str, str]:
    """The line under each field of a record's class, and of the record that it extends."""
    docs: dict[str, str] = {}
    for base in record.__bases__:
        docs |= field_docs(base) if is_dataclass(base) else {}
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(record))).body
    assert isinstance(tree, ast.ClassDef)
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            docs[field.target.id] = " ".join(below.value.value.split())
    return docs


def _closed(properties: Mapping[str, Schema]) -> Schema:
    return {"type": "object", "properties": dict(properties), "additionalProperties": False}


def _or_null(schema: Schema) -> Schema:
    forms = schema["anyOf"] if schema.keys() == {"anyOf"} else [schema]
    return {"anyOf": [*forms, _NULL]} if _NULL not in forms else schema


def _described(schema: Schema, text: str | None) -> Schema:
    return {"description": text, **schema} if text else schema
