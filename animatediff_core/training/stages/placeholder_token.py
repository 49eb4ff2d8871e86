"""A word whose vectors are learned (textual inversion, arXiv 2208.01618), by a hook.

The text encoder stays as it is but for the rows of the word's own tokens.

Legend: v vectors, n tokens, d features.
"""

from typing import Any

import torch
from torch import Tensor, nn


class LearnedWord(nn.Module):
    """Vectors, v d, put wherever a text encoder meets the tokens of the word."""

    def __init__(self, encoder: Any, tokens: list[int], vectors: Tensor) -> None:
        super().__init__()
        self.tokens = tokens
        self.vectors = nn.Parameter(vectors.clone())
        self._handle = encoder.get_input_embeddings().register_forward_hook(self._put)

    def _put(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        for token, vector in zip(self.tokens, self.vectors, strict=True):
            here = (inputs[0] == token).unsqueeze(-1)  # b n 1
            output = torch.where(here, vector.to(output.dtype), output)
        return output

    def remove(self) -> None:
        """Take the hook out: the encoder knows its own table only."""
        self._handle.remove()
