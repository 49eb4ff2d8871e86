"""Second stage: a CLIP tokenizer over the world's words, and a text encoder that understands them.

The encoder first learns to name what a caption says: at every position after the caption's end
its states must tell colour, shape, ground, size, place and motion apart, linearly. A cross-
attention that has learned nothing yet already hands that to the image model, which then has
the images to learn and not the language.

Shapes: n captions, t tokens (32), d features (128).
"""

import random
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.models.clip import CLIPTextModel, CLIPTokenizer

from .parts import new_text_encoder, new_tokenizer
from .saved import load_named, naming_loss, train_naming
from .world import COLORS, MOTIONS, PLACES, SHAPES, SIZES, Scene, draw_scene

TOKENS = 32
STEPS = 400
BATCH = 96
OTHER_WORDS = (
    "an and or of with to is are it in at up by from into over under near very big little tiny "
    "huge medium bright dark plain simple picture photo image animation clip thing object one two "
    "slowly quickly fast slow still orange purple pink gray brown side corner upper lower here "
    "there this that top bottom middle center centre left right down moves grows shrinks bounces"
)
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "color": tuple(COLORS),
    "shape": SHAPES,
    "background": tuple(COLORS),
    "size": tuple(SIZES),
    "place": tuple(PLACES),
    "motion": MOTIONS,
}


def word_tokenizer() -> CLIPTokenizer:
    """Every word of the world is one token; any other text falls back to its bytes."""
    phrases = " ".join(word for words in ATTRIBUTES.values() for word in words)
    words = {*phrases.split(), *OTHER_WORDS.split(), "a", "the", "on", "background"}
    return new_tokenizer(sorted(words), tokens=TOKENS)


def _untrained_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """0.4 M parameters."""
    return new_text_encoder(
        vocabulary=len(tokenizer),
        width=128,
        layers=2,
        tokens=TOKENS,
        start=tokenizer.bos_token_id,
        end=tokenizer.eos_token_id,
    )


def train_text_encoder(
    tokenizer: CLIPTokenizer, state_file: Path, *, steps: int = STEPS
) -> Iterator[tuple[int, float]]:
    """Train and save the state; yields step and the share of attributes named right."""
    torch.manual_seed(1)
    encoder = _untrained_encoder(tokenizer)
    heads = nn.ModuleDict({k: nn.Linear(128, len(v)) for k, v in ATTRIBUTES.items()})
    both = nn.ModuleDict({"encoder": encoder, "heads": heads})

    def loss_of(step: int) -> tuple[Tensor, float]:
        rng = random.Random(step)
        scenes = [draw_scene(rng) for _ in range(BATCH)]
        return _name_attributes(encoder, heads, tokenizer, scenes, rng)

    yield from train_naming(both, state_file, steps, 200, loss_of)


def finished_text_encoder(tokenizer: CLIPTokenizer, state_file: Path) -> CLIPTextModel:
    """The trained encoder without its heads."""
    encoder = _untrained_encoder(tokenizer)
    load_named(encoder, state_file)
    return encoder


def _name_attributes(
    encoder: CLIPTextModel,
    heads: nn.ModuleDict,
    tokenizer: CLIPTokenizer,
    scenes: list[Scene],
    rng: random.Random,
) -> tuple[Tensor, float]:
    """Cross-entropy summed over attributes, and the share right, over all tokens after the end."""
    captions = [scene.caption(rng) for scene in scenes]
    given = tokenizer(captions, padding="max_length", max_length=TOKENS, return_tensors="pt")
    states = encoder(given.input_ids).last_hidden_state  # n t d
    ends = (given.input_ids == tokenizer.eos_token_id).cumsum(1) > 0  # n t
    loss, right = torch.zeros(()), []
    for name, values in ATTRIBUTES.items():
        truth = torch.tensor([values.index(getattr(s, name)) for s in scenes])
        error, share = naming_loss(
            heads[name](states[ends]), truth.unsqueeze(1).expand_as(ends)[ends]
        )
        loss = loss + error
        right.append(share)
    return loss, float(torch.stack(right).mean())
