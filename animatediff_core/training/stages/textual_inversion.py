"""Stage `textual-inversion` (arXiv 2208.01618): vectors of one placeholder token, by a hook.

The text encoder is unchanged except for the rows of the placeholder's own tokens.

Legend: v vectors, n tokens, d features.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ...adapters.textual_inversion import add_placeholder_token
from ...checkpoints.base_model import BaseModel
from ...diffusion.encoders import encode
from ...errors import TrainingError
from ..config import TrainConfig
from ..stage import ImageLoss, Stage, image_scheduler

EMBEDDING_FILE = "embedding.safetensors"


def textual_inversion_stage(config: TrainConfig, base: BaseModel) -> Stage:
    """Train the vectors of a new word, on images whose captions use it."""
    if len(base.text_encoders) > 1:
        raise TrainingError(
            "textual-inversion: models of two text encoders (SDXL) are not supported"
        )
    word, tokenizer, encoder = str(config.word), base.tokenizers[0], base.text_encoders[0]
    if not {word, f"{word}</w>"}.isdisjoint(tokenizer.get_vocab()):
        raise TrainingError(f"word: the model knows {word!r} already; choose one such as <{word}>")
    start = _start_vector(config, tokenizer, encoder).repeat(config.num_vectors or 1, 1)
    placeholder = PlaceholderToken(
        encoder, add_placeholder_token(tokenizer, encoder, word, start), start
    )
    encoder.requires_grad_(False)
    base.unet.requires_grad_(False).eval()
    return Stage(
        loss=ImageLoss(base.unet, image_scheduler(config, base), hooked=placeholder),
        parameters={word: placeholder.vectors},
        embed=lambda captions: (encode(base, captions)[0], None),
        file_name=EMBEDDING_FILE,
    )


class PlaceholderToken(nn.Module):
    """Vectors, v d, in place of the text encoder's own for the tokens of a word."""

    def __init__(self, encoder: Any, tokens: list[int], vectors: Tensor) -> None:
        super().__init__()
        self.tokens = tokens
        self.vectors = nn.Parameter(vectors.clone())
        encoder.get_input_embeddings().register_forward_hook(self._replace)

    def _replace(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        for token, vector in zip(self.tokens, self.vectors, strict=True):
            mask = (inputs[0] == token).unsqueeze(-1)  # b n 1
            output = torch.where(mask, vector.to(output.dtype), output)
        return output


def _start_vector(config: TrainConfig, tokenizer: Any, encoder: Any) -> Tensor:
    """The vector of `init_word`, or the mean of all words: 1 d."""
    table: Tensor = encoder.get_input_embeddings().weight.detach()
    if config.init_word is None:
        return table.mean(0, keepdim=True)
    tokens = tokenizer(config.init_word, add_special_tokens=False).input_ids
    if len(tokens) != 1:
        raise TrainingError(
            f"init_word: {config.init_word!r} is {len(tokens)} tokens; name a simpler word"
        )
    return table[tokens].clone()
