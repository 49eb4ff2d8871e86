"""Textual inversion (arXiv 2208.01618): placeholder tokens for the text encoder, one or more
vectors each.

A placeholder token of several vectors becomes several tokens, TOKEN, TOKEN_1, TOKEN_2 …, as in
diffusers, so a saved model needs nothing but its tokenizer to expand it (`expand_placeholders`).

Legend: v vectors, d features.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.base_model import BaseModel
from ..checkpoints.file_report import NOWHERE, FileReport, require
from ..errors import CheckpointError
from ..weights.safetensors_file import headers_only
from ..weights.weight_file import WeightFile, open_weights

log = logging.getLogger(__name__)

_WEB_UI = "string_to_param."
_PAIRS = (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1"))
"""SDXL's two text encoders, the second in Replicate's .pti files."""
_NAMELESS = ("emb_params", "*")
"""Names that stand for any token; the file's own name is the token then."""
BUNDLED = re.compile(r"bundle_emb\.(?P<word>.+)\.(string_to_param\.\*|emb_params|clip_[lg])$")
"""The name of an embedding's tensor in a LoRA file."""
_OWN_WORD = (
    "name another one: `word: NEW` beside its path in a prompt file, or --embedding PATH:NEW"
)
_LONGEST_TOKEN = 64
_FAMILIES = {(768,): "SD1.5", (1024,): "SD2", (768, 1280): "SDXL"}
"""By the features that the text encoders have."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingInfo(FileReport):
    """A textual inversion."""

    file: WeightFile = field(repr=False)
    token: str
    names: tuple[str, ...]
    """The tensor of each text encoder."""
    remedy: str = field(default=_OWN_WORD, repr=False)
    """What to do if the token cannot be used."""


def recognise_embedding(file: WeightFile) -> EmbeddingInfo | None:
    """A textual inversion.

    Forms: one named tensor (diffusers), `emb_params` (its token is the file's name), the web UI's
    `string_to_param` (and that of the first textual inversions, which names no token), SDXL's pair.
    A file of several words is recognised but cannot be used.
    """
    shapes, stem = file.shapes, file.path.stem
    names = tuple(name for name in shapes if name.startswith(_WEB_UI))[:1]
    if names:
        token = file.metadata.get("name") or stem
    elif pair := next((pair for pair in _PAIRS if set(shapes) == set(pair)), None):
        names, token = pair, stem.removesuffix(".pti")
    elif len(shapes) == 1:
        names = tuple(shapes)
        token = stem if names[0] in _NAMELESS else names[0]
    elif len({shape[-1:] for shape in shapes.values()}) == 1 and all(map(_is_word, shapes)):
        names, token = tuple(shapes), ", ".join(shapes)
        note = "each word needs a file of its own: save them one by one"
        return EmbeddingInfo(
            path=file.path,
            kind="embedding of several words",
            goes_in=NOWHERE,
            file=file,
            details={"tokens": token, "note": note},
            token=token,
            names=names,
        )
    if not names or not all(len(shapes[n]) in (1, 2) and shapes[n][-1] for n in names):
        return None
    return _info(file, token, names)


def bundled_embeddings(file: WeightFile) -> list[EmbeddingInfo]:
    """The embeddings that the web UI put into a LoRA file, each with its word."""
    words: dict[str, list[str]] = {}
    for name in sorted(file.shapes, reverse=True):  # clip_l before clip_g
        if bundled := BUNDLED.match(name):
            words.setdefault(bundled["word"], []).append(name)
    remedy = "it belongs to the LoRA; use another file"
    return [
        replace(_info(file, word, tuple(names)), remedy=remedy) for word, names in words.items()
    ]


def _info(file: WeightFile, token: str, names: tuple[str, ...]) -> EmbeddingInfo:
    widths = tuple(file.shapes[name][-1] for name in names)
    first = file.shapes[names[0]]
    return EmbeddingInfo(
        path=file.path,
        kind="embedding",
        family=_FAMILIES.get(widths, f"width {' and '.join(map(str, widths))}"),
        goes_in="embeddings",
        details={"token": token, "vectors": str(first[0] if len(first) == 2 else 1)},
        file=file,
        token=token,
        names=names,
    )


def _is_word(name: str) -> bool:
    """Whether a tensor's name can be a placeholder token: those of layers have dots."""
    return "." not in name and len(name) <= _LONGEST_TOKEN


def read_embedding(path: Path) -> tuple[str, list[Tensor]]:
    """The placeholder token, and for each text encoder its vectors, v d."""
    info = require(recognise_embedding(open_weights(path)), "embeddings", path)
    return info.token, _vectors(info)


def apply_embedding(base: BaseModel, path: Path, word: str | None = None) -> str:
    """Add the placeholder token of a file, or `word`, to the text encoders; returns the token."""
    info = require(recognise_embedding(open_weights(path)), "embeddings", path)
    return add_embedding(base, replace(info, token=word or info.token))


def add_embedding(base: BaseModel, info: EmbeddingInfo) -> str:
    """Add the placeholder token of a recognised embedding to the text encoders; returns it."""
    path, token, vectors = info.path, info.token, _vectors(info)
    if len(vectors) != len(base.text_encoders):
        raise CheckpointError(
            f"{path}: is made for {len(vectors)} text encoders but this model has "
            f"{len(base.text_encoders)}; use an embedding of the base model's family"
        )
    parts = list(zip(base.tokenizers, base.text_encoders, vectors, strict=True))
    for tokenizer, encoder, rows in parts:
        _check_vectors(rows, encoder.config.hidden_size, tokenizer.model_max_length - 2, path)
        known = tokenizer.get_vocab()
        for name in _numbered(token, len(rows)):
            spellings = {name, name.lower(), f"{name}</w>", f"{name.lower()}</w>"}
            if not spellings.isdisjoint(known):
                raise CheckpointError(f"{path}: the token {name!r} exists already; {info.remedy}")
    for tokenizer, encoder, rows in parts:
        add_placeholder_token(tokenizer, encoder, token, rows)
    base.placeholder_tokens.append(token)
    if not headers_only():
        log.info("%s: write %r in a prompt for its %d vectors", path, token, len(vectors[0]))
    return token


def _vectors(info: EmbeddingInfo) -> list[Tensor]:
    """For each text encoder the vectors of an embedding whose token can be used, v d."""
    path = info.path
    _check_token(info)
    tensors = info.file.tensors(*info.names)
    vectors = [
        tensors[name].detach().float().reshape(-1, tensors[name].shape[-1]) for name in info.names
    ]
    if len(vectors[0]) != len(vectors[-1]):
        raise CheckpointError(
            f"{path}: has {len(vectors[0])} vectors for one text encoder and {len(vectors[-1])} "
            "for the other; download it again"
        )
    return vectors


def add_placeholder_token(tokenizer: Any, encoder: Any, token: str, vectors: Tensor) -> list[int]:
    """Give a new token its vectors, v d; returns their ids."""
    names = _numbered(token, len(vectors))
    tokenizer.add_tokens(names)
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    table = encoder.get_input_embeddings().weight
    ids: list[int] = tokenizer.convert_tokens_to_ids(names)
    with torch.no_grad():
        table[ids] = vectors.to(table)
    return ids


def expand_placeholders(tokenizer: Any, texts: Sequence[str]) -> list[str]:
    """Texts with every placeholder token of several vectors written as all of its tokens.

    Case does not matter, as it does not for the tokenizer.
    """
    added = tokenizer.get_added_vocab()
    tokens = [token for token in added if f"{token}_1" in added]
    if not tokens:
        return list(texts)
    expanded = {token.lower(): _expanded(token, added) for token in tokens}
    longest_first = sorted(tokens, key=len, reverse=True)
    pattern = re.compile(f"(?:{'|'.join(map(re.escape, longest_first))})(?!_\\d)", re.I)
    return [pattern.sub(lambda found: expanded[found.group().lower()], text) for text in texts]


def _expanded(token: str, added: dict[str, int]) -> str:
    count = 1
    while f"{token}_{count}" in added:
        count += 1
    return " ".join(_numbered(token, count))


def _numbered(token: str, count: int) -> list[str]:
    """The tokens of a placeholder token of several vectors."""
    return [token, *(f"{token}_{number}" for number in range(1, count))]


def _check_token(info: EmbeddingInfo) -> None:
    """A placeholder token is one piece of text that a prompt can hold."""
    token, problem = info.token, None
    if len(token) > _LONGEST_TOKEN:
        problem = f"has {len(token)} characters, more than {_LONGEST_TOKEN}"
    elif not token.isprintable() or any(c.isspace() for c in token):
        problem = "has spaces or characters that cannot be typed"
    elif not any(c.isalnum() for c in token):
        problem = "has no letter or digit"
    if problem:
        raise CheckpointError(
            f"{info.path}: its token {token[:_LONGEST_TOKEN]!r} {problem}; {info.remedy}"
        )


def _check_vectors(vectors: Tensor, width: int, most: int, path: Path) -> None:
    if vectors.shape[1] != width:
        raise CheckpointError(
            f"{path}: has {vectors.shape[1]} values a vector but this model's text encoder has "
            f"{width}; use an embedding of the base model's family"
        )
    if not 1 <= len(vectors) <= most:
        raise CheckpointError(
            f"{path}: has {len(vectors)} vectors but a prompt holds {most} at most; use another "
            "textual inversion"
        )
    if not headers_only() and not bool(vectors.isfinite().all()):
        raise CheckpointError(f"{path}: holds values that are no numbers; use another file")
