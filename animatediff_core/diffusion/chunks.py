"""Prompts of any length: tokens in chunks, each as long as the text encoder reads at once."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..adapters.textual_inversion import expand_placeholders
from .prompt_syntax import parse_prompt


@dataclass(frozen=True)
class Chunk:
    """Input of one pass of the text encoder, without begin, end and padding."""

    tokens: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    """One for each token."""


def chunks_of(tokenizer: Any, prompt: str) -> list[Chunk]:
    """A prompt's chunks, one at least.

    A chunk ends if the next word would not fit, or at BREAK. A word is not divided, nor are the
    vectors of a placeholder token; only a word longer than a chunk is divided.
    """
    limit = tokenizer.model_max_length - 2
    chunks: list[Chunk] = []
    for part in parse_prompt(prompt):
        chunks.append(Chunk())
        for piece in part:
            for word in _words(tokenizer, piece.text, limit):
                if len(chunks[-1].tokens) + len(word) > limit:
                    chunks.append(Chunk())
                last, weights = chunks[-1], (piece.weight,) * len(word)
                chunks[-1] = Chunk(last.tokens + word, last.weights + weights)
    return [chunk for chunk in chunks if chunk.tokens] or [Chunk()]


def _words(tokenizer: Any, text: str, limit: int) -> Iterator[tuple[int, ...]]:
    """The tokens of each word of a text; those of a placeholder token's vectors are together."""
    (whole,) = expand_placeholders(tokenizer, [text])
    ids: list[int] = tokenizer(whole, add_special_tokens=False, verbose=False).input_ids
    names: list[str] = tokenizer.convert_ids_to_tokens(ids)
    added = tokenizer.get_added_vocab()
    start = 0
    for end, (name, following) in enumerate(zip(names, [*names[1:], ""], strict=True), start=1):
        if name in added:
            ended = not (following in added and _follows(following, name))
        else:
            ended = name.endswith("</w>") or following in added or following == ""
        if ended or end - start == limit:
            yield tuple(ids[start:end])
            start = end


def _follows(name: str, before: str) -> bool:
    """Whether a placeholder token's vector follows another: look_1 after look, then look_2."""
    stem, _, number = before.rpartition("_")
    if stem and number.isdigit() and name == f"{stem}_{int(number) + 1}":
        return True
    return name == f"{before}_1"
