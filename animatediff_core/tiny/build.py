"""How the bundled tiny model is made, stage after stage; each resumes where it was cut.

vae -> text -> clips -> start (untrained base) -> image -> motion -> publish -> members -> control
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers.models import UNet2DConditionModel
from torch import nn

from ..checkpoints.base_model import BaseModel
from ..checkpoints.loading import load_base
from ..checkpoints.motion_files import MOTION_FILE
from ..checkpoints.motion_module import load_motion_module, save_motion_module
from ..checkpoints.write import write_base_folder
from ..motion import LINEAR_BETAS
from ..runs.train import Event, Skipped, run
from ..training.config_file import load_train_config
from ..training.stages.lora import LORA_FILE
from ..training.stages.textual_inversion import EMBEDDING_FILE
from ..weights.files import write_tensors
from ..weights.places import MODELS
from ..weights.weight_file import open_weights
from . import control_members
from .clips import write_clips
from .members import MEMBERS, Member, write_pictures
from .text import finished_text_encoder, new_tokenizer, train_text_encoder
from .vae import finished_vae, train_vae

BUNDLED = MODELS / "tiny"


def build(folder: Path) -> Iterator[str]:
    """Make everything under `folder` that is not there yet; yields lines for people."""
    for step, decibel in train_vae(folder / "vae.pt"):
        yield f"vae: step {step}, {decibel:.1f} dB"
    for step, right in train_text_encoder(new_tokenizer(), folder / "text.pt"):
        yield f"text: step {step}, {right:.1%} of attributes named right"
    for done, total in write_clips(folder):
        yield f"clips: {done} of {total}"
    if not (folder / "start").is_dir():
        write_base_folder(start_model(folder), folder / "start")
    for stage, result in (("image", "base"), ("motion", MOTION_FILE)):
        if not (folder / stage / ".done").exists():
            yield from _train(folder, stage)
            assert (folder / stage / result).exists()
            (folder / stage / ".done").touch()
    publish(folder)
    yield f"published: {BUNDLED}"
    for member in MEMBERS[1:]:
        yield from build_member(member, folder)
    yield from build_control(folder)


def build_member(member: Member, folder: Path) -> Iterator[str]:
    """Draw a member's pictures, train it on the published base, and publish it."""
    name = member.look.name
    write_pictures(member, folder / f"{name}-pictures")
    if not (folder / name / ".done").exists():
        yield from _train(folder, name)
        (folder / name / ".done").touch()
    yield f"published: {publish_member(member, folder / name)}"


def build_control(folder: Path) -> Iterator[str]:
    """Train and publish the models that lead the family's clips."""
    yield from control_members.prepare(folder)
    for stage in control_members.STAGES:
        if not (folder / stage / ".done").exists():
            yield from _train(folder, stage)
            (folder / stage / ".done").touch()
    for path in control_members.publish_control(folder):
        yield f"published: {path}"


def publish_member(member: Member, trained: Path) -> Path:
    """Put what a member's stage has left, in fp16, where the package finds it."""
    place = BUNDLED / member.look.name
    if (trained / "base").is_dir():
        _publish_base(trained / "base", place)
        return place
    files = [trained / LORA_FILE, trained / EMBEDDING_FILE]
    content = open_weights(next(file for file in files if file.exists()))
    halves = {key: tensor.half() for key, tensor in content.tensors().items()}
    file = place.with_suffix(".safetensors")
    write_tensors(file, halves, content.metadata)
    return file


def start_model(folder: Path) -> BaseModel:
    """The base model before its UNet has learned anything."""
    tokenizer = new_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        unet = new_unet()
    start, end, schedule = LINEAR_BETAS
    return BaseModel(
        unet=unet,
        vae=finished_vae(folder / "vae.pt"),
        text_encoders=[finished_text_encoder(tokenizer, folder / "text.pt")],
        tokenizers=[tokenizer],
        scheduler_config={
            "prediction_type": "v_prediction",
            "beta_start": start,
            "beta_end": end,
            "beta_schedule": schedule,
        },
        family="tiny",
        source=str(folder),
    )


def new_unet() -> UNet2DConditionModel:
    """5.6 M parameters, text at 16 x 16 and 8 x 8."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(48, 96, 160),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def publish(folder: Path) -> None:
    """Put the finished weights, in fp16, where the package finds them."""
    _publish_base(folder / "image" / "base", BUNDLED / "base")
    module = folder / "motion" / MOTION_FILE
    if module.exists():
        save_motion_module(load_motion_module(module).half(), BUNDLED / MOTION_FILE)


def _publish_base(folder: Path, place: Path) -> None:
    base = load_base(str(folder))
    for part in (base.unet, base.vae, *base.text_encoders):
        nn.Module.to(part, dtype=torch.float16)
    shutil.rmtree(place, ignore_errors=True)
    write_base_folder(base, place)


def _train(folder: Path, stage: str) -> Iterator[str]:
    config = load_train_config(stage_file(folder, stage))
    losses: list[float] = []
    for event in run(config, folder / stage, resume=True):
        losses += _told(event)
        if len(losses) == 100:
            yield f"{stage}: loss {sum(losses) / 100:.4f}"
            losses = []
        if isinstance(event, Skipped):
            yield f"{stage}: {event.reason}"


def stage_file(folder: Path, stage: str) -> Path:
    """The stage's configuration, copied to where its relative paths begin."""
    return Path(shutil.copy(Path(__file__).parent / f"{stage}.yaml", folder / f"{stage}.yaml"))


def _told(event: Event) -> list[float]:
    from ..training.loop import Step

    return [event.loss] if isinstance(event, Step) else []
