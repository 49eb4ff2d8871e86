"""Prompts to embeddings, for Stable Diffusion's one text encoder and SDXL's two.

Legend: f frames, n tokens, d features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checkpoints.base import BaseModel
from ..checkpoints.embeddings import spelled_out


@dataclass(frozen=True)
class TextEmbedding:
    """What the UNet reads of one prompt."""

    tokens: Tensor
    """1 n d, or 1 f n d where the prompt travels."""
    pooled: Tensor | None = None
    """SDXL's pooled text of the first prompt, 1 d."""


@torch.no_grad()
def embed_prompt(base: BaseModel, prompt: Mapping[int, str], frames: int) -> TextEmbedding:
    """Embed a prompt, or prompts by frame with linear travel from each to the next.

    Before the first key the first prompt holds, after the last the last. Text beyond the
    tokenizer's window is cut; `cut_text` tells which.
    """
    keys = sorted(prompt)
    tokens, pooled = encode(base, [prompt[key] for key in keys])  # k n d, k d
    first = pooled[:1] if pooled is not None else None
    if len(keys) == 1:
        return TextEmbedding(tokens, first)
    weights = travel_weights(keys, frames).to(tokens)  # f k
    return TextEmbedding(torch.einsum("fk,knd->fnd", weights, tokens).unsqueeze(0), first)


def travel_weights(keys: Sequence[int], frames: int) -> Tensor:
    """How much of each prompt every frame has: f k, each row sums to 1."""
    weights = torch.zeros(frames, len(keys))
    for frame in range(frames):
        after = next((i for i, key in enumerate(keys) if key > frame), len(keys))
        before = max(after - 1, 0)
        if after == len(keys) or after == before:
            weights[frame, before] = 1
            continue
        share = (frame - keys[before]) / (keys[after] - keys[before])
        weights[frame, before], weights[frame, after] = 1 - share, share
    return weights


def encode(base: BaseModel, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
    """Last hidden states, k n d; for SDXL both encoders' penultimate ones side by side, pooled."""
    if len(base.text_encoders) == 1:
        encoder = base.text_encoders[0]
        return encoder(_ids(base.tokenizers[0], texts, encoder)).last_hidden_state, None
    states, pooled = [], None
    for tokenizer, encoder in zip(base.tokenizers, base.text_encoders, strict=True):
        out = encoder(_ids(tokenizer, texts, encoder), output_hidden_states=True)
        states.append(out.hidden_states[-2])
        pooled = getattr(out, "text_embeds", None)
    return torch.cat(states, dim=-1), pooled


def cut_text(base: BaseModel, text: str) -> str | None:
    """What of a prompt lies beyond the tokenizer's window, or None."""
    tokenizer = base.tokenizers[0]
    ids = tokenizer(*spelled_out(tokenizer, [text])).input_ids
    window = tokenizer.model_max_length
    if len(ids) <= window:
        return None
    return str(tokenizer.decode(ids[window - 1 : -1])).strip()


def _ids(tokenizer, texts: Sequence[str], encoder) -> Tensor:  # type: ignore[no-untyped-def]
    given = tokenizer(
        spelled_out(tokenizer, texts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    ids: Tensor = given.input_ids
    return ids.to(encoder.device)
