"""Textual inversion (arXiv 2208.01618): new words for the text encoder, one or more vectors each.

A word of several vectors becomes several tokens, WORD, WORD_1, WORD_2 …, as in diffusers, so that
a saved model needs nothing but its tokenizer to spell them out (`spelled_out`).

Legend: v vectors, d features.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from .base import BaseModel
from .files import is_safetensors, read_tensors

_SDXL = ("clip_l", "clip_g")


def apply_embedding(base: BaseModel, path: Path) -> str:
    """Teach the text encoders the word of a file; returns that word."""
    word, vectors = read_embedding(path)
    if len(vectors) != len(base.text_encoders):
        raise CheckpointError(
            f"{path}: is made for {len(vectors)} text encoders but this model has "
            f"{len(base.text_encoders)}; use an embedding of the base model's family"
        )
    for tokenizer, encoder, one in zip(base.tokenizers, base.text_encoders, vectors, strict=True):
        width = encoder.config.hidden_size
        if one.shape[1] != width:
            raise CheckpointError(
                f"{path}: has {one.shape[1]} values a word but this model's text encoder has "
                f"{width}; use an embedding of the base model's family"
            )
        if word in tokenizer.get_vocab():
            raise CheckpointError(f"{path}: the word {word!r} exists already; rename the file")
        teach_word(tokenizer, encoder, word, one)
    base.triggers.append(word)
    return word


def teach_word(tokenizer: Any, encoder: Any, word: str, vectors: Tensor) -> list[int]:
    """Give a new word its vectors, v d; returns its tokens."""
    names = [word, *(f"{word}_{number}" for number in range(1, len(vectors)))]
    tokenizer.add_tokens(names)
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    table = encoder.get_input_embeddings().weight
    tokens: list[int] = tokenizer.convert_tokens_to_ids(names)
    with torch.no_grad():
        table[tokens] = vectors.to(table)
    return tokens


def read_embedding(path: Path) -> tuple[str, list[Tensor]]:
    """The word, and for each text encoder its vectors, v d.

    Forms: one named tensor (diffusers), `emb_params` (its word is the file's name), the web UI's
    `string_to_param`, SDXL's pair clip_l and clip_g.
    """
    tensors = read_tensors(path).tensors
    if not tensors and not is_safetensors(path):
        content = torch.load(path, map_location="cpu", weights_only=True)
        words = content.get("string_to_param") if isinstance(content, dict) else None
        if words:
            word = str(content.get("name") or path.stem)
            return word, [_rows(next(iter(words.values())))]
    if set(tensors) == set(_SDXL):
        return path.stem, [_rows(tensors[name]) for name in _SDXL]
    if len(tensors) != 1 or next(iter(tensors.values())).ndim not in (1, 2):
        raise CheckpointError(
            f"{path}: is no textual inversion; `animatediff inspect` says what it is"
        )
    word, vectors = next(iter(tensors.items()))
    return (path.stem if word == "emb_params" else word), [_rows(vectors)]


def _rows(vectors: Tensor) -> Tensor:
    return vectors.detach().float().reshape(-1, vectors.shape[-1])


def spelled_out(tokenizer: Any, texts: Sequence[str]) -> list[str]:
    """Texts with every learned word of several vectors written as all of its tokens."""
    learned = tokenizer.get_added_vocab()
    words = [word for word in learned if f"{word}_1" in learned]
    if not words:
        return list(texts)
    whole = {word: _tokens(word, learned) for word in words}
    longest_first = sorted(words, key=len, reverse=True)
    pattern = re.compile(f"(?:{'|'.join(map(re.escape, longest_first))})(?!_\\d)")
    return [pattern.sub(lambda found: whole[found.group()], text) for text in texts]


def _tokens(word: str, learned: dict[str, int]) -> str:
    tokens, number = [word], 1
    while (token := f"{word}_{number}") in learned:
        tokens.append(token)
        number += 1
    return " ".join(tokens)
