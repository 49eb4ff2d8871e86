"""Prompts to the UNet's text input: chunks, weights, interpolation between key frames.

Legend: f frames, n tokens, d features.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..checkpoints.base_model import BaseModel
from ..jobs.choices import Travel
from .chunks import Chunk, chunks_of
from .encoders import encode_chunks
from .interpolation import interpolate

Prompt = Mapping[int, str]
"""Texts by key frame."""


@dataclass(frozen=True, kw_only=True)
class TextEmbedding:
    """The text input of the UNet for one prompt, or for prompts at key frames."""

    states: Tensor
    """k n d, one for each prompt."""
    pooled_states: Tensor | None = None
    """SDXL's pooled text, k d."""
    keys: tuple[int, ...] = (0,)
    """Key frame of each prompt, in order."""
    frames: int = 1
    """Frames of the clip."""
    travel: Travel = "linear"
    travel_loop: bool = False
    """Whether the last prompt travels back to the first around the clip's end."""

    @property
    def tokens(self) -> Tensor:
        """1 n d, or 1 f n d for prompts at key frames."""
        return self.states if len(self.keys) == 1 else self.at(torch.arange(self.frames))

    @property
    def pooled(self) -> Tensor | None:
        """1 d, or 1 f d for prompts at key frames."""
        if self.pooled_states is None or len(self.keys) == 1:
            return self.pooled_states
        return self._between(self.pooled_states, range(self.frames))

    def for_unet(self, *, divided: bool) -> Tensor | Callable[[Tensor], Tensor]:
        """The tokens; for prompts at key frames in a divided clip a function of the frames."""
        return self.at if divided and len(self.keys) > 1 else self.tokens

    def at(self, frames: Tensor) -> Tensor:
        """Tokens of some frames by number, 1 f n d, so that a long clip need not hold all."""
        return self._between(self.states, frames.tolist())

    def _between(self, states: Tensor, frames: Sequence[int]) -> Tensor:
        loop = self.frames if self.travel_loop else None
        return interpolate(states, self.keys, frames, self.travel, loop=loop).unsqueeze(0)


def embed_prompt(base: BaseModel, prompt: Prompt, frames: int) -> TextEmbedding:
    """Embed one prompt, or prompts at key frames with linear interpolation."""
    return _embed(base, [prompt], frames, 1)[0]


def embed_pair(
    base: BaseModel,
    prompt: Prompt,
    negative: Prompt,
    frames: int,
    *,
    travel: Travel = "linear",
    travel_loop: bool = False,
    clip_skip: int = 1,
) -> tuple[TextEmbedding, TextEmbedding]:
    """Embed a positive and a negative prompt, the shorter filled up with empty chunks."""
    first, second = (
        replace(one, travel=travel, travel_loop=travel_loop)
        for one in _embed(base, [prompt, negative], frames, clip_skip)
    )
    return first, second


@torch.no_grad()
def _embed(
    base: BaseModel, prompts: list[Prompt], frames: int, clip_skip: int
) -> list[TextEmbedding]:
    """Each prompt in a batch of its own, so that one's numbers do not depend on the other."""
    chunked = [
        [
            [chunks_of(tokenizer, prompt[key]) for tokenizer in base.tokenizers]
            for key in sorted(prompt)
        ]
        for prompt in prompts
    ]
    count = max(len(one) for prompt in chunked for text in prompt for one in text)
    embedded = []
    for prompt, texts in zip(prompts, chunked, strict=True):
        filled = [[_filled(one, count) for one in text] for text in texts]
        states, pooled = encode_chunks(base, filled, clip_skip=clip_skip)
        embedded.append(
            TextEmbedding(
                states=states,
                pooled_states=pooled,
                keys=tuple(sorted(prompt)),
                frames=frames,
            )
        )
    return embedded


def _filled(chunks: list[Chunk], count: int) -> list[Chunk]:
    return chunks + [Chunk()] * (count - len(chunks))
