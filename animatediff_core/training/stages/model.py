"""What a training run trains: the stage's model, where it starts from, and how it is written."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.schedulers import DDPMScheduler
from torch import Tensor

from ...adapters.textual_inversion import add_placeholder_token
from ...checkpoints.base_model import BaseModel
from ...checkpoints.motion_files import MOTION_FILE
from ...checkpoints.motion_module import load_motion_module, save_motion_module
from ...checkpoints.write import write_base_folder
from ...diffusion.encoders import encode
from ...diffusion.schedules import training_scheduler
from ...diffusion.size_conditions import size_conditions
from ...errors import TrainingError
from ...motion import Betas, Conditions, MotionModule, for_unet, inflate
from ...weights.files import write_tensors
from ...weights.match import check_tensors, shapes_of
from ...weights.places import local_path
from ...weights.weight_file import open_weights
from ..config import TrainConfig
from .control_model import controlnet_stage, ip_adapter_stage
from .lora_layers import LoraLayers
from .placeholder_token import LearnedWord
from .stage import (
    Embed,
    StageModel,
    image_trainee,
    lora_trainee,
    motion_trainee,
    word_trainee,
)

UNET_FILE = "unet.safetensors"
LORA_FILE = "lora.safetensors"
WORD_FILE = "embedding.safetensors"


def open_stage(config: TrainConfig, base: BaseModel, *, offline: bool) -> StageModel:
    """The model of the configuration's stage, over a loaded base model."""
    if config.unet is not None:
        _replace_unet(base, Path(config.unet))
    if config.stage == "motion":
        return _motion_stage(config, base, _motion(config, base, offline))
    scheduler = training_scheduler(
        config.betas or base.betas, prediction_type=base.prediction_type, zero_snr=base.zero_snr
    )
    if config.stage in ("image", "dreambooth"):
        weight = 1.0 if config.prior_weight is None else config.prior_weight
        prior = weight if config.stage == "dreambooth" else None
        return _image_stage(config, base, scheduler, prior)
    if config.stage == "lora":
        return _lora_stage(config, base, scheduler)
    if config.stage in ("controlnet", "ip-adapter"):
        stage = controlnet_stage if config.stage == "controlnet" else ip_adapter_stage
        return stage(config, base, scheduler, _embedder(config, base), offline=offline)
    return _word_stage(config, base, scheduler)


def _motion_stage(config: TrainConfig, base: BaseModel, motion: MotionModule) -> StageModel:
    animated = inflate(base.unet, motion)
    scheduler = training_scheduler(
        motion.config.betas, prediction_type=base.prediction_type, zero_snr=base.zero_snr
    )

    def write(weights: dict[str, Tensor], output: Path) -> Path:
        with torch.device("meta"):
            trained = MotionModule(motion.config)
        trained.load_state_dict(weights, assign=True)
        save_motion_module(trained, output / MOTION_FILE)
        return output / MOTION_FILE

    trainee = motion_trainee(animated, scheduler)
    return StageModel(trainee, _embedder(config, base), write, write, animated)


def _image_stage(
    config: TrainConfig, base: BaseModel, scheduler: DDPMScheduler, prior_weight: float | None
) -> StageModel:
    def write(weights: dict[str, Tensor], output: Path) -> Path:
        write_tensors(output / UNET_FILE, weights, {"format": "pt"})
        return output / UNET_FILE

    def finish(weights: dict[str, Tensor], output: Path) -> Path:
        """Also the whole model, for `--base`."""
        path = write(weights, output)
        base.unet.load_state_dict(weights)
        write_base_folder(base, output / "base")
        return path

    trainee = image_trainee(base.unet, scheduler, prior_weight)
    return StageModel(trainee, _embedder(config, base), write, finish)


def _lora_stage(config: TrainConfig, base: BaseModel, scheduler: DDPMScheduler) -> StageModel:
    generator = torch.Generator().manual_seed(config.seed)
    rank, conv_rank = config.lora_rank or 16, config.lora_conv_rank or 0
    layers = LoraLayers(base.unet, rank, generator, conv_rank)

    def write(weights: dict[str, Tensor], output: Path) -> Path:
        write_tensors(output / LORA_FILE, weights, {"format": "pt"})
        return output / LORA_FILE

    trainee = lora_trainee(base.unet, layers, scheduler)
    return StageModel(trainee, _embedder(config, base), write, write)


def _word_stage(config: TrainConfig, base: BaseModel, scheduler: DDPMScheduler) -> StageModel:
    if len(base.text_encoders) > 1:
        raise TrainingError(
            "textual-inversion: models of two text encoders (SDXL) cannot be taught"
        )
    word, tokenizer, encoder = str(config.word), base.tokenizers[0], base.text_encoders[0]
    if not {word, f"{word}</w>"}.isdisjoint(tokenizer.get_vocab()):
        raise TrainingError(f"word: the model knows {word!r} already; choose one such as <{word}>")
    start = _start_vector(config, tokenizer, encoder).repeat(config.num_vectors or 1, 1)
    learned = LearnedWord(encoder, add_placeholder_token(tokenizer, encoder, word, start), start)
    encoder.requires_grad_(False)

    def write(weights: dict[str, Tensor], output: Path) -> Path:
        write_tensors(output / WORD_FILE, weights, {"format": "pt"})
        return output / WORD_FILE

    trainee = word_trainee(base.unet, word, learned, scheduler)
    return StageModel(trainee, lambda captions: (encode(base, captions)[0], None), write, write)


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


def _embedder(config: TrainConfig, base: BaseModel) -> Embed:
    """Of frozen text encoders."""

    @torch.no_grad()
    def embed(captions: Sequence[str]) -> tuple[Tensor, Conditions | None]:
        text, pooled = encode(base, captions)
        return text, size_conditions(pooled, *config.data.sample_size)

    return embed


def _motion(config: TrainConfig, base: BaseModel, offline: bool) -> MotionModule:
    """The module to start from, or a fresh one with the run's own seed."""
    if config.motion is not None:
        path = Path(config.motion) if Path(config.motion).exists() else None
        path = path or local_path(config.motion, offline=offline)
        motion = load_motion_module(path, version=config.motion_version)
        if config.max_frames not in (None, motion.config.max_frames):
            raise TrainingError(
                f"max_frames {config.max_frames}: {config.motion} has {motion.config.max_frames} "
                "positions; leave max_frames out where a run starts from a module"
            )
    else:
        unet = base.unet.config
        motion_config = for_unet(
            config.motion_version or "v3",
            unet.block_out_channels,
            layers_per_block=unet.layers_per_block,
            norm_num_groups=unet.norm_num_groups,
        )
        if config.max_frames is not None:
            motion_config = replace(motion_config, max_frames=config.max_frames)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            motion = MotionModule(motion_config)
    if config.betas is not None:
        motion.config = replace(motion.config, betas=_betas(config.betas))
    if config.num_frames > motion.config.max_frames:
        raise TrainingError(
            f"sample_n_frames {config.num_frames} is more than the module's "
            f"{motion.config.max_frames} positions; lower it, or set max_frames"
        )
    return motion


def _betas(given: Betas) -> Betas:
    start, end, schedule = given
    return float(start), float(end), str(schedule)


def _replace_unet(base: BaseModel, path: Path) -> None:
    """Put the image stage's weights into the base's UNet; all tensors must match."""
    file = open_weights(path)
    advice = "name the unet.safetensors that the image stage wrote"
    check_tensors(shapes_of(base.unet), file.shapes, path, "UNet of this base model", advice)
    base.unet.load_state_dict(file.tensors())
