"""How the bundled tiny model is made, stage after stage; each resumes where it was cut.

vae -> text -> clips -> start (untrained base) -> image -> motion -> publish -> members -> control
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from ..checkpoints.base_model import BaseModel
from ..checkpoints.loading import load_base
from ..checkpoints.motion_files import MOTION_FILE
from ..checkpoints.motion_module import load_motion_module, save_motion_module
from ..checkpoints.write import write_base_folder
from ..runs.train import Skipped, run
from ..training.config_file import load_train_config
from ..training.loop import Step
from ..training.stages.lora import LORA_FILE
from ..training.stages.textual_inversion import EMBEDDING_FILE
from ..weights.files import write_tensors
from ..weights.places import MODELS
from ..weights.weight_file import open_weights
from . import control_members
from .clips import write_clips
from .members import MEMBERS, Member, write_images
from .parts import base_model, new_unet
from .text import finished_text_encoder, train_text_encoder, word_tokenizer
from .vae import finished_vae, train_vae

BUNDLED = MODELS / "tiny"


def build(folder: Path) -> Iterator[str]:
    """Make everything under `folder` that is not there yet; yields lines for people."""
    for step, decibel in train_vae(folder / "vae.pt"):
        yield f"vae: step {step}, {decibel:.1f} dB"
    for step, right in train_text_encoder(word_tokenizer(), folder / "text.pt"):
        yield f"text: step {step}, {right:.1%} of attributes named right"
    for done, total in write_clips(folder):
        yield f"clips: {done} of {total}"
    if not (folder / "start").is_dir():
        write_base_folder(start_model(folder), folder / "start")
    for stage in ("image", "motion"):
        yield from _train(folder, stage)
    _publish_base(folder / "image" / "base", BUNDLED / "base")
    module = load_motion_module(folder / "motion" / MOTION_FILE)
    save_motion_module(module.half(), BUNDLED / MOTION_FILE)
    yield f"published: {BUNDLED}"
    for member in MEMBERS[1:]:
        name = member.look.name
        write_images(member, folder / f"{name}-pictures")
        yield from _train(folder, name)
        yield f"published: {publish_member(member, folder / name)}"
    yield from _build_control(folder)


def _build_control(folder: Path) -> Iterator[str]:
    """Train and publish the models that guide the family's clips."""
    yield from control_members.prepare(folder)
    for stage, name in control_members.STAGES.items():
        yield from _train(folder, stage)
        yield f"published: {_publish_file(folder / stage / name, stage)}"
    yield f"published: {control_members.publish_encoder(folder)}"


def publish_member(member: Member, trained: Path) -> Path:
    """Put a member's trained weights, in fp16, where the package finds them."""
    if (trained / "base").is_dir():
        return _publish_base(trained / "base", BUNDLED / member.look.name)
    files = [trained / LORA_FILE, trained / EMBEDDING_FILE]
    return _publish_file(next(file for file in files if file.exists()), member.look.name)


def _publish_file(trained: Path, name: str) -> Path:
    content = open_weights(trained)
    halves = {key: tensor.half() for key, tensor in content.tensors().items()}
    file = BUNDLED / f"{name}.safetensors"
    write_tensors(file, halves, content.metadata)
    return file


def _publish_base(trained: Path, folder: Path) -> Path:
    base = load_base(str(trained))
    for part in (base.unet, base.vae, *base.text_encoders):
        nn.Module.to(part, dtype=torch.float16)
    shutil.rmtree(folder, ignore_errors=True)
    write_base_folder(base, folder)
    return folder


def start_model(folder: Path) -> BaseModel:
    """The base model before its UNet has learned anything; the UNet has 5.6 M parameters."""
    tokenizer = word_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        unet = new_unet((48, 96, 160), text=128, heads=4, groups=16, size=16)
    text_encoder = finished_text_encoder(tokenizer, folder / "text.pt")
    vae = finished_vae(folder / "vae.pt")
    return base_model(unet, vae, text_encoder, tokenizer, family="tiny", source=folder)


def _train(folder: Path, stage: str) -> Iterator[str]:
    """Train a stage that is not finished; yields its mean losses."""
    finished = folder / stage / ".done"
    if finished.exists():
        return
    # the configuration's relative paths begin in `folder`
    config = shutil.copy(Path(__file__).with_name(f"{stage}.yaml"), folder)
    losses: list[float] = []
    for event in run(load_train_config(Path(config)), folder / stage, resume=True):
        if isinstance(event, Step):
            losses.append(event.loss)
        if len(losses) == 100:
            yield f"{stage}: loss {sum(losses) / 100:.4f}"
            losses = []
        if isinstance(event, Skipped):
            yield f"{stage}: {event.reason}"
    finished.touch()
