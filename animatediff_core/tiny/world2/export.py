"""World 2's family in the forms that `animatediff generate` and other programs load."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers.models.clip import CLIPTokenizer

from ...checkpoints.base_model import BaseModel
from ...checkpoints.motion_files import MOTION_FILE
from ...checkpoints.motion_module import save_motion_module
from ...checkpoints.write import write_base_folder
from ...motion import LINEAR_BETAS
from .family import Family
from .models import VOCABULARY
from .words import END, START, TOKENS, WORDS


def new_tokenizer() -> CLIPTokenizer:
    """Every word of the world is one token, with the ids that training used."""
    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = splitter
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=5000,
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(WORDS * 3, trainer)
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    ids = {f"{word}</w>": i for i, word in enumerate(WORDS)}
    ids |= {"<|startoftext|>": START, "<|endoftext|>": END}
    for piece in [*letters, *(f"{c}</w>" for c in letters), *("".join(pair) for pair in merges)]:
        ids.setdefault(piece, len(ids))
    assert len(ids) <= VOCABULARY
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=TOKENS)


def export(family: Family, folder: Path) -> None:
    """Write FOLDER/base, an ordinary diffusers folder, and the motion module beside it, in fp16."""
    start, end, schedule = LINEAR_BETAS
    parts = (family.unet, family.vae, family.text)
    for part in (*parts, family.motion):
        nn.Module.to(part, "cpu", torch.float16)
    base = BaseModel(
        unet=family.unet,
        vae=family.vae,
        text_encoders=[family.text],
        tokenizers=[new_tokenizer()],
        scheduler_config={
            "prediction_type": "v_prediction",
            "beta_start": start,
            "beta_end": end,
            "beta_schedule": schedule,
        },
        family="world2",
        source=str(family.folder),
    )
    write_base_folder(base, folder / "base")
    save_motion_module(family.motion, folder / MOTION_FILE)
