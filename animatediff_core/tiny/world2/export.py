"""World 2's family in the forms that `animatediff generate` and other programs load."""

from pathlib import Path

import torch
from torch import nn
from transformers.models.clip import CLIPTokenizer

from ...checkpoints.motion_files import MOTION_FILE
from ...checkpoints.motion_module import save_motion_module
from ...checkpoints.write import write_base_folder
from .. import parts
from .family import Family
from .models import VOCABULARY
from .words import TOKENS, WORDS


def word_tokenizer() -> CLIPTokenizer:
    """Every word of the world is one token, with the ids that training used."""
    first = [*(f"{word}</w>" for word in WORDS), parts.START, parts.END]
    tokenizer = parts.new_tokenizer(WORDS, tokens=TOKENS, first=first)
    assert len(tokenizer) <= VOCABULARY
    return tokenizer


def export(family: Family, folder: Path) -> None:
    """Write FOLDER/base, an ordinary diffusers folder, and the motion module beside it, in fp16."""
    for part in (family.unet, family.vae, family.text, family.motion):
        nn.Module.to(part, "cpu", torch.float16)
    base = parts.base_model(
        family.unet,
        family.vae,
        family.text,
        word_tokenizer(),
        family="world2",
        source=family.folder,
    )
    write_base_folder(base, folder / "base")
    save_motion_module(family.motion, folder / MOTION_FILE)
