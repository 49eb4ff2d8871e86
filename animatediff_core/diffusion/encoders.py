"""Tokens to embeddings, for Stable Diffusion's one text encoder and SDXL's two.

Legend: k texts, m chunks, n tokens of a chunk, d features.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..adapters.textual_inversion import expand_placeholders
from ..checkpoints.base_model import BaseModel
from ..errors import CheckpointError
from .chunks import Chunk

Encoded = tuple[Tensor, Tensor | None]
"""Embeddings k n d and, of SDXL, pooled text k d."""


def encode(base: BaseModel, texts: Sequence[str]) -> Encoded:
    """Plain texts as a training reads its captions: no weights, cut to one chunk; k n d, k d."""
    rows = [
        tokenizer(
            expand_placeholders(tokenizer, texts),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        for tokenizer in base.tokenizers
    ]
    states, pooled = _states(base, rows, clip_skip=1)
    return _joined(states), pooled


def encode_chunks(
    base: BaseModel, prompts: Sequence[Sequence[Sequence[Chunk]]], *, clip_skip: int = 1
) -> Encoded:
    """Chunks of each prompt for each tokenizer, all prompts of equally many: k (m n) d, k d.

    The weight of a token scales its embedding; the chunk is then scaled back so that the mean
    size of its values stays as it was. Pooled text is that of a prompt's first chunk, unweighted.
    """
    count = len(prompts[0][0])
    flat = [[c for prompt in prompts for c in prompt[i]] for i in range(len(base.tokenizers))]
    ids = [
        torch.tensor([_row(tokenizer, chunk) for chunk in chunks])
        for tokenizer, chunks in zip(base.tokenizers, flat, strict=True)
    ]  # each (k m) n
    states, pooled = _states(base, ids, clip_skip)
    both = _joined([_weighted(one, c) for one, c in zip(states, flat, strict=True)])
    tokens = both.unflatten(0, (-1, count)).flatten(1, 2)  # k (m n) d
    return tokens, None if pooled is None else pooled[::count]


def _joined(states: list[Tensor]) -> Tensor:
    """SDXL's encoders side by side, along d."""
    return states[0] if len(states) == 1 else torch.cat(states, dim=-1)


def _row(tokenizer: Any, chunk: Chunk) -> list[int]:
    """Begin, the chunk's tokens, end, padding."""
    whole = [tokenizer.bos_token_id, *chunk.tokens, tokenizer.eos_token_id]
    return whole + [tokenizer.pad_token_id] * (tokenizer.model_max_length - len(whole))


def _weighted(states: Tensor, chunks: Sequence[Chunk]) -> Tensor:
    """states: k n d, of one encoder. A chunk without weights stays as it is, bit for bit."""
    rows = []
    for row, chunk in zip(states, chunks, strict=True):
        if any(weight != 1 for weight in chunk.weights):
            weights = torch.ones(len(row))
            weights[1 : 1 + len(chunk.weights)] = torch.tensor(chunk.weights)
            plain = row.float()
            scaled = plain * weights.to(plain).unsqueeze(1)
            row = (scaled * (plain.abs().mean() / scaled.abs().mean())).to(states)
        rows.append(row)
    return torch.stack(rows)


def _states(
    base: BaseModel, rows: Sequence[Tensor], clip_skip: int
) -> tuple[list[Tensor], Tensor | None]:
    """Hidden states k n d of each encoder and SDXL's pooled text k d, from tokens k n."""
    _check_skip(base, clip_skip)
    if len(base.text_encoders) == 1:
        encoder = base.text_encoders[0]
        ids = rows[0].to(encoder.device, non_blocking=True)
        if clip_skip == 1:
            return [encoder(ids).last_hidden_state], None
        layers = encoder(ids, output_hidden_states=True).hidden_states
        # with a projection, and in older versions of transformers, the norm is one deeper
        return [getattr(encoder, "text_model", encoder).final_layer_norm(layers[-clip_skip])], None
    states, pooled = [], None
    for tokenizer, encoder, ids in zip(base.tokenizers, base.text_encoders, rows, strict=True):
        ids = ids.to(encoder.device, non_blocking=True)
        out = encoder(ids, output_hidden_states=True)
        states.append(out.hidden_states[-1 - clip_skip])
        if hasattr(encoder, "text_projection"):
            pooled = _pooled(encoder, out.last_hidden_state, ids == tokenizer.eos_token_id)
    return states, pooled


def _pooled(encoder: Any, last: Tensor, ends: Tensor) -> Tensor:
    """The projected state of each text's end, k d.

    transformers takes the highest token for the end where a model's configuration is old, as
    SDXL's is; but a learned word's tokens are higher still.
    """
    first = ends.int().argmax(dim=-1)
    pooled: Tensor = encoder.text_projection(last[torch.arange(len(first)), first])
    return pooled


def _check_skip(base: BaseModel, clip_skip: int) -> None:
    most = most_clip_skip([encoder.config.num_hidden_layers for encoder in base.text_encoders])
    if not 1 <= clip_skip <= most:
        raise CheckpointError(
            f"clip_skip {clip_skip}: the text encoder of {base.source} knows 1 to {most}"
        )


def most_clip_skip(layers: Sequence[int]) -> int:
    """The highest clip_skip for encoders of so many layers: SDXL's counts from the second last."""
    return min(layers) - (len(layers) > 1)
