"""Prompt travel as other tools write it into one text, and negative prompts behind `--neg`."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

from ..errors import Problem, PromptFileError
from .documents import parsed
from .kinds import KeyFrames

_LINE = re.compile(r"(\d+): +(\S.*)")
"""sd-webui-animatediff: `8: in a car`, after and before lines that all texts share."""
_SCHEDULE = re.compile(r'\s*\{?\s*"(\d+|[^"\n]*max_f[^"\n]*)"\s*:')
"""FizzNodes and Deforum: `"8": "in a car",`."""
_NEGATIVE = re.compile(r"(?:^|\s)--neg(?:\s|$)")


def _texts_by_frame(value: Any) -> Any:
    """Texts by frame, if a text has them in another tool's form; other values as they are."""
    if not isinstance(value, str):
        return value
    if _SCHEDULE.match(value):
        return _schedule(value)
    lines = [line.strip(" ,") for line in value.splitlines()]
    found = [(index, match) for index, one in enumerate(lines) if (match := _LINE.fullmatch(one))]
    if not found:
        return value
    first, last = found[0][0], found[-1][0]
    if last - first >= len(found):
        raise ValueError(f"must have its lines by frame together, got {lines[first]!r} apart")
    head, tail = lines[:first], lines[last + 1 :]
    texts: dict[str, str] = {}
    for _, match in found:
        if match[1] in texts:
            raise ValueError(f"names frame {match[1]} twice")
        texts[match[1]] = ", ".join(text for text in (*head, match[2], *tail) if text)
    return texts


Prompt = Annotated[KeyFrames[str], BeforeValidator(_texts_by_frame)]
"""One text, or texts by frame; also in the forms of other tools."""


def _schedule(text: str) -> Mapping[str, Any]:
    body = re.sub(r"^\s*\{|[\s,}]*$", "", text)
    try:
        texts: Mapping[str, Any] = parsed("{" + body + "}", "the schedule")
    except PromptFileError as error:
        raise ValueError(str(error)) from error
    if odd := next((key for key in texts if not str(key).isdecimal()), None):
        raise ValueError(f"names a frame by {odd!r}; expressions are not read, give its number")
    return texts


def split_negatives(
    prompt: Mapping[int, str], negative: Mapping[int, str]
) -> tuple[Mapping[int, str], Mapping[int, str]]:
    """A prompt without what stands behind `--neg`, and the negative prompt with it."""
    halves = {frame: _NEGATIVE.split(text) for frame, text in prompt.items()}
    if all(len(one) == 1 for one in halves.values()):
        return prompt, negative
    if len(negative) > 1:
        message = "has --neg, and there is a negative_prompt by frame; give one of them"
        raise PromptFileError([Problem(message, "prompt")])
    (shared,) = negative.values()
    behind = {
        frame: ", ".join(text for text in (shared, *map(_bare, later)) if text)
        for frame, (_, *later) in halves.items()
    }
    return {frame: _bare(first) for frame, (first, *_) in halves.items()}, behind


def _bare(text: str) -> str:
    return text.strip(" ,\n")
