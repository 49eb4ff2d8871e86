"""Textual inversion: new words for the text encoder."""

from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from .base import BaseModel
from .files import is_safetensors, read_tensors


def apply_embedding(base: BaseModel, path: Path) -> str:
    """Teach the first text encoder the word of a file with one vector; returns that word."""
    name, vectors = read_embedding(path)
    encoder, tokenizer = base.text_encoders[0], base.tokenizers[0]
    width = encoder.config.hidden_size
    if vectors.shape[1] != width:
        raise CheckpointError(
            f"{path}: has {vectors.shape[1]} values a word but this model's text encoder has "
            f"{width}; use an embedding of the base model's family"
        )
    if len(vectors) > 1:
        raise CheckpointError(
            f"{path}: holds {len(vectors)} vectors; embeddings of one vector work here"
        )
    if tokenizer.add_tokens([name]) == 0:
        raise CheckpointError(f"{path}: the word {name!r} exists already; rename the file")
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    table = encoder.get_input_embeddings().weight
    with torch.no_grad():
        table[tokenizer.convert_tokens_to_ids(name)] = vectors[0].to(table)
    base.triggers.append(name)
    return name


def read_embedding(path: Path) -> tuple[str, Tensor]:
    """The word and its vectors, v d."""
    tensors = read_tensors(path).tensors
    if not is_safetensors(path) and not tensors:
        content = torch.load(path, map_location="cpu", weights_only=True)
        words = content.get("string_to_param", {})
        if words:
            return str(content.get("name") or path.stem), next(iter(words.values())).float()
    vectors = [t for t in tensors.values() if t.ndim in (1, 2)]
    if len(tensors) != 1 or not vectors:
        raise CheckpointError(
            f"{path}: is no textual inversion; `animatediff inspect` says what it is"
        )
    word = next(iter(tensors))
    width = vectors[0].shape[-1]
    return (path.stem if word == "emb_params" else word), vectors[0].float().reshape(-1, width)
