"""Second stage: a CLIP tokenizer over the world's words, and a text encoder that understands them.

The encoder first learns to name what a caption says: at every position after the caption's end
its states must tell colour, shape, ground, size, place and motion apart, linearly. A cross-
attention that has learned nothing yet already hands that to the image model, which then has
the pictures to learn and not the language.

Shapes: n captions, t tokens (32), d features (128).
"""

import random
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.clip import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .saved import load_named, train_naming
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


def new_tokenizer() -> CLIPTokenizer:
    """Every word of the world is one token; any other text falls back to its bytes."""
    phrases = " ".join(word for words in ATTRIBUTES.values() for word in words)
    words = sorted({*phrases.split(), *OTHER_WORDS.split(), "a", "the", "on", "background"})
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=5000,
        initial_alphabet=[*alphabet],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(words * 3, trainer)
    import json

    model = json.loads(tokenizer.to_str())["model"]
    learned = [tuple(pair) for pair in model["merges"]]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(m) for m in learned)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=learned, model_max_length=TOKENS)


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """0.4 M parameters."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            projection_dim=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train_text_encoder(
    tokenizer: CLIPTokenizer, state_file: Path, *, steps: int = STEPS
) -> Iterator[tuple[int, float]]:
    """Train and save the state; yields step and the share of attributes named right."""
    torch.manual_seed(1)
    encoder = new_text_encoder(tokenizer)
    heads = nn.ModuleDict({k: nn.Linear(128, len(v)) for k, v in ATTRIBUTES.items()})
    both = nn.ModuleDict({"encoder": encoder, "heads": heads})

    def loss_of(step: int) -> tuple[Tensor, float]:
        rng = random.Random(step)
        scenes = [draw_scene(rng) for _ in range(BATCH)]
        return _name_attributes(encoder, heads, tokenizer, scenes, rng)

    yield from train_naming(both, state_file, steps, 200, loss_of)


def finished_text_encoder(tokenizer: CLIPTokenizer, state_file: Path) -> CLIPTextModel:
    """The trained encoder without its heads."""
    encoder = new_text_encoder(tokenizer)
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
        scores = heads[name](states[ends])
        wanted = truth.unsqueeze(1).expand_as(ends)[ends]
        loss = loss + F.cross_entropy(scores, wanted)
        right.append((scores.argmax(1) == wanted).float().mean())
    return loss, float(torch.stack(right).mean())
