"""Wildcards: `__colour__` in a prompt is one line of colour.txt, chosen by the job's seed."""

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import PromptFileError

_WILDCARD = re.compile(r"__(\w[\w-]*?(?:/\w[\w-]*?)*)__")
_DEEPEST = 8
"""How often a chosen line may hold wildcards in turn."""
_MOST = 1000
"""Wildcards of a text with those of the chosen lines."""


def chosen(text: str, seed: int, use: str, folders: Sequence[Path]) -> str:
    """The text with each wildcard replaced by a line of its file, found in the first of `folders`
    that has it, there or under wildcards/.

    The choice depends on nothing but the seed, the name, its position among the wildcards of the
    text and `use`, which tells a job's texts apart: it is the same on every machine. Raises
    PromptFileError if a file is missing, empty, or names itself.
    """
    number = 0

    def line_of(match: re.Match[str], depth: int) -> str:
        nonlocal number
        lines = _lines(match[1], folders)
        digest = hashlib.sha256(f"{seed}/{use}/{match[1]}/{number}".encode()).digest()
        number += 1
        if depth == _DEEPEST or number > _MOST:
            raise PromptFileError(
                f"the wildcard __{match[1]}__ leads back to itself, or to more than {_MOST} others"
            )
        line = lines[int.from_bytes(digest, "big") % len(lines)]
        return _WILDCARD.sub(lambda inner: line_of(inner, depth + 1), line)

    return _WILDCARD.sub(lambda match: line_of(match, 0), text)


def _lines(name: str, folders: Sequence[Path]) -> list[str]:
    """The choices: lines of the file that are neither empty nor comments."""
    paths = [folder / f"{prefix}{name}.txt" for folder in folders for prefix in ("", "wildcards/")]
    for path in paths:
        if os.path.isfile(path):  # False for a name that is too long, too
            try:
                lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
            except (OSError, UnicodeDecodeError) as error:
                raise PromptFileError(f"{path}: cannot be read as text") from error
            lines = [line for line in lines if line and not line.startswith("#")]
            if lines:
                return lines
            raise PromptFileError(f"{path}: has no line for the wildcard __{name}__")
    raise PromptFileError(
        f"the wildcard __{name}__ has no file; put {name}.txt beside the prompt file, a choice a "
        "line"
    )
