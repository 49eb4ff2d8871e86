"""The text of a prompt file as plain values: YAML, or JSON where it is that."""

import json
import re
from typing import Any

import yaml

from ..errors import PromptFileError

_MERGE = "tag:yaml.org,2002:merge"
_MOST = 1_000_000
"""Values of a file, each counted wherever an alias repeats it."""
_MOST_MERGED = 10_000
"""Keys that merge keys (`<<`) bring into one mapping."""
_JSON = re.compile(r'\s*[{\[]\s*(["{\[]|/[/*])')
"""How a text begins that is meant to be JSON."""
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


def parsed(text: str, where: str) -> Any:
    """The plain values of a YAML or JSON text; a key that occurs twice in a mapping is an error."""
    wrong: json.JSONDecodeError | None = None
    try:
        if text.lstrip()[:1] in ("{", "["):
            try:  # JSON may be indented by tabs, which YAML does not take
                return checked(json.loads(text, object_pairs_hook=_without_twins), where)
            except json.JSONDecodeError as error:
                if where.endswith(".json") or _JSON.match(text):
                    wrong = error
        return checked(yaml.load(text, _Loader), where)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise PromptFileError(f"{where}: {_json_fault(wrong) or _yaml_fault(error)}") from error
    except RecursionError as error:
        raise PromptFileError(f"{where}: is nested too deeply") from error
    except ValueError as error:
        raise PromptFileError(f"{where}: {str(error).partition(';')[0]}") from error
    except (AttributeError, KeyError, IndexError) as error:  # PyYAML's, of `!!bool x` for instance
        raise PromptFileError(f"{where}: has a value that does not suit its !! tag") from error


def checked(value: Any, where: str) -> Any:
    """Plain values that are not too many and whose texts are Unicode; else PromptFileError."""
    waiting = [value]
    count = 0
    while waiting:
        one = waiting.pop()
        count += 1
        if count + len(waiting) > _MOST:
            raise PromptFileError(f"{where}: has more than {_MOST:,} values, counting aliases")
        if isinstance(one, str) and _NO_TEXT.search(one):
            raise PromptFileError(f"{where}: {ascii(one)[:100]} is no Unicode text; retype it")
        if isinstance(one, dict):
            waiting += one.values()
            waiting += one
        elif isinstance(one, list | tuple):
            waiting += one
    return value


def _yaml_fault(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    line = f" in line {mark.line + 1}" if mark else ""
    return f"no valid YAML{line}: {getattr(error, 'problem', None) or 'it cannot be parsed'}"


def _json_fault(error: json.JSONDecodeError | None) -> str | None:
    if error is None:
        return None
    comment = error.doc[error.pos :].startswith(("//", "/*"))
    reason = "comments are no JSON; remove them" if comment else error.msg
    return f"no valid JSON in line {error.lineno}: {reason}"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, except that it does not let a later key win in silence."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            if (key.tag, key.value) in seen:
                problem = f"the key {key.value!r} occurs twice in one mapping"
                raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
            seen.add((key.tag, key.value))
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _MOST_MERGED:
            problem = f"merge keys make a mapping of more than {_MOST_MERGED:,} keys"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        keys = [key for key, _ in pairs]
        twin = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twin!r} occurs twice in one mapping")
    return mapping
