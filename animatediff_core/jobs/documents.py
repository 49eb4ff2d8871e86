"""The text of a prompt file as plain values: YAML, or JSON where it is that."""

import json
from typing import Any

import yaml

from ..errors import PromptFileError

_MERGE = "tag:yaml.org,2002:merge"


def parsed(text: str, where: str) -> Any:
    """The plain values of a YAML or JSON text; a key that occurs twice in a mapping is an error."""
    try:
        if text.lstrip()[:1] in ("{", "["):
            try:  # JSON may be indented by tabs, which YAML does not take
                return json.loads(text, object_pairs_hook=_without_twins)
            except json.JSONDecodeError:
                pass
        return yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or "it cannot be parsed"
        raise PromptFileError(f"{where}: no valid YAML{line}: {reason}") from error
    except RecursionError as error:
        raise PromptFileError(f"{where}: no valid YAML: it is nested too deeply") from error
    except ValueError as error:
        raise PromptFileError(f"{where}: {error}") from error


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


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        keys = [key for key, _ in pairs]
        twin = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twin!r} occurs twice in one mapping")
    return mapping
