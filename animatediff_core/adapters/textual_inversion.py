"""Textual inversion (arXiv 2208.01618): new words for the text encoder, one or more vectors each.

A word of several vectors becomes several tokens, WORD, WORD_1, WORD_2 …, as in diffusers, so that
a saved model needs nothing but its tokenizer to spell them out (`spelled_out`).

Legend: v vectors, d features.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.base_model import BaseModel
from ..errors import CheckpointError
from ..weights.weight_file import WeightFile, open_weights

log = logging.getLogger(__name__)

_SDXL = ("clip_l", "clip_g")
_NAMELESS = ("emb_params", "*")
"""Names that stand for any word; the file's own name is the word then."""
_LONGEST_WORD = 64


def apply_embedding(base: BaseModel, path: Path) -> str:
    """Teach the text encoders the word of a file; returns that word."""
    word, vectors = read_embedding(path)
    if len(vectors) != len(base.text_encoders):
        raise CheckpointError(
            f"{path}: is made for {len(vectors)} text encoders but this model has "
            f"{len(base.text_encoders)}; use an embedding of the base model's family"
        )
    _check_word(word, path)
    parts = list(zip(base.tokenizers, base.text_encoders, vectors, strict=True))
    for tokenizer, encoder, one in parts:
        _check_vectors(one, encoder.config.hidden_size, tokenizer.model_max_length - 2, path)
        vocabulary = tokenizer.get_vocab()
        for name in _names(word, len(one)):
            if name in vocabulary or name.lower() in vocabulary:
                raise CheckpointError(f"{path}: the word {name!r} exists already; rename the file")
    for tokenizer, encoder, one in parts:
        teach_word(tokenizer, encoder, word, one)
    base.placeholder_tokens.append(word)
    log.info("%s: write %r in a prompt for its %d vectors", path, word, len(vectors[0]))
    return word


def _check_word(word: str, path: Path) -> None:
    """A word is one piece of text that a prompt can hold."""
    why = None
    if len(word) > _LONGEST_WORD:
        why = f"has {len(word)} characters, more than {_LONGEST_WORD}"
    elif not word.isprintable() or any(c.isspace() for c in word):
        why = "has spaces or characters that cannot be typed"
    elif not any(c.isalnum() for c in word):
        why = "has no letter or digit"
    if why:
        raise CheckpointError(
            f"{path}: its word {word[:_LONGEST_WORD]!r} {why}; save it under a plain word"
        )


def _check_vectors(vectors: Tensor, width: int, most: int, path: Path) -> None:
    if vectors.shape[1] != width:
        raise CheckpointError(
            f"{path}: has {vectors.shape[1]} values a word but this model's text encoder has "
            f"{width}; use an embedding of the base model's family"
        )
    if not 1 <= len(vectors) <= most:
        raise CheckpointError(
            f"{path}: has {len(vectors)} vectors but a prompt holds {most} at most; use another "
            "textual inversion"
        )
    if not bool(vectors.isfinite().all()):
        raise CheckpointError(f"{path}: holds values that are no numbers; use another file")


def teach_word(tokenizer: Any, encoder: Any, word: str, vectors: Tensor) -> list[int]:
    """Give a new word its vectors, v d; returns its tokens."""
    names = _names(word, len(vectors))
    tokenizer.add_tokens(names)
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    table = encoder.get_input_embeddings().weight
    tokens: list[int] = tokenizer.convert_tokens_to_ids(names)
    with torch.no_grad():
        table[tokens] = vectors.to(table)
    return tokens


def _names(word: str, count: int) -> list[str]:
    """The tokens of a word of several vectors."""
    return [word, *(f"{word}_{number}" for number in range(1, count))]


def read_embedding(path: Path) -> tuple[str, list[Tensor]]:
    """The word, and for each text encoder its vectors, v d.

    Forms: one named tensor (diffusers), `emb_params` (its word is the file's name), the web UI's
    `string_to_param`, SDXL's pair clip_l and clip_g.
    """
    file = open_weights(path)
    if (found := _web_ui(file)) is not None:
        return found
    tensors = file.tensors()
    if set(tensors) == set(_SDXL) and all(t.ndim in (1, 2) for t in tensors.values()):
        pair = [_rows(tensors[name]) for name in _SDXL]
        if len(pair[0]) != len(pair[1]):
            raise CheckpointError(
                f"{path}: has {len(pair[0])} vectors for one text encoder and {len(pair[1])} for "
                "the other; download it again"
            )
        return path.stem, pair
    if len(tensors) != 1 or next(iter(tensors.values())).ndim not in (1, 2):
        raise CheckpointError(
            f"{path}: is no textual inversion; `animatediff inspect` says what it is"
        )
    word, vectors = next(iter(tensors.items()))
    return (path.stem if word in _NAMELESS else word), [_rows(vectors)]


def _web_ui(file: WeightFile) -> tuple[str, list[Tensor]] | None:
    """The web UI's form, and that of the first textual inversions, which names no word."""
    vectors = next(iter(file.tensors("string_to_param.").values()), None)
    if vectors is None or vectors.ndim not in (1, 2):
        return None
    return file.metadata.get("name") or file.path.stem, [_rows(vectors)]


def _rows(vectors: Tensor) -> Tensor:
    return vectors.detach().float().reshape(-1, vectors.shape[-1])


def spelled_out(tokenizer: Any, texts: Sequence[str]) -> list[str]:
    """Texts with every learned word of several vectors written as all of its tokens.

    Case does not matter, as it does not for the tokenizer.
    """
    learned = tokenizer.get_added_vocab()
    words = [word for word in learned if f"{word}_1" in learned]
    if not words:
        return list(texts)
    whole = {word.lower(): _tokens(word, learned) for word in words}
    longest_first = sorted(words, key=len, reverse=True)
    pattern = re.compile(f"(?:{'|'.join(map(re.escape, longest_first))})(?!_\\d)", re.I)
    return [pattern.sub(lambda found: whole[found.group().lower()], text) for text in texts]


def _tokens(word: str, learned: dict[str, int]) -> str:
    tokens, number = [word], 1
    while (token := f"{word}_{number}") in learned:
        tokens.append(token)
        number += 1
    return " ".join(tokens)
