"""An injected model on disk: a diffusers folder that we and stock diffusers both open."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from diffusers.models import MotionAdapter
from diffusers.schedulers import DDIMScheduler
from torch import nn

from ..errors import CheckpointError, SurroundingsError
from ..jobs import RECORD_FILE
from ..motion import Betas, MotionModule
from .base import BaseModel
from .motion_keys import FROM_DIFFUSERS
from .motion_modules import save_motion_module

MOTION_FILE = "motion_module.safetensors"


def write_pipeline_folder(
    base: BaseModel, motion: MotionModule, folder: Path, record: Mapping[str, object]
) -> None:
    """Write the parts, the motion module in both forms, and `record`, what they came from.

    The folder appears whole or not at all; one that exists is not touched (CheckpointError).
    """
    with _staged(folder) as staged:
        index = _write_base(base, staged)
        index["_class_name"] = "AnimateDiffPipeline"
        if len(base.text_encoders) == 1:
            index |= {"feature_extractor": [None, None], "image_encoder": [None, None]}
        else:
            index["_class_name"] = "AnimateDiffSDXLPipeline"
        index["motion_adapter"] = ["diffusers", "MotionAdapter"]
        _write_scheduler(motion.config.betas, base.prediction_type, staged)
        adapter = motion_adapter(motion)
        nn.Module.to(adapter, dtype=base.unet.dtype)  # diffusers' own warns of nothing here
        adapter.save_pretrained(staged / "motion_adapter")
        save_motion_module(motion, staged / MOTION_FILE)
        noted = {"motion": asdict(motion.config), **record}
        (staged / RECORD_FILE).write_text(json.dumps(noted, indent=1), "utf-8")
        (staged / "model_index.json").write_text(json.dumps(index, indent=1), "utf-8")


def write_base_folder(base: BaseModel, folder: Path) -> None:
    """Write an image model as stock diffusers' StableDiffusionPipeline opens it."""
    with _staged(folder) as staged:
        index = _write_base(base, staged)
        index["_class_name"] = "StableDiffusionPipeline"
        if len(base.text_encoders) == 1:
            index |= {"feature_extractor": [None, None], "safety_checker": [None, None]}
        else:
            index["_class_name"] = "StableDiffusionXLPipeline"
        kind = base.scheduler_config
        betas = (kind["beta_start"], kind["beta_end"], kind["beta_schedule"])
        _write_scheduler(betas, base.prediction_type, staged)
        (staged / "model_index.json").write_text(json.dumps(index, indent=1), "utf-8")


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A folder beside, which takes the final name only if all went well."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder}: exists already and is not empty; choose another name")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield staged
        staged.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        os.replace(staged, folder)
    except OSError as error:
        raise SurroundingsError(
            f"{folder}: cannot be written ({error.strerror or error})"
        ) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _write_base(base: BaseModel, folder: Path) -> dict[str, object]:
    """UNet, VAE, text; returns their entries of model_index.json."""
    base.unet.save_pretrained(folder / "unet")
    base.vae.save_pretrained(folder / "vae")
    index: dict[str, object] = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    for number, (encoder, tokenizer) in enumerate(
        zip(base.text_encoders, base.tokenizers, strict=True), start=1
    ):
        suffix = "" if number == 1 else f"_{number}"
        encoder.save_pretrained(folder / f"text_encoder{suffix}")
        tokenizer.save_pretrained(folder / f"tokenizer{suffix}")
        index[f"text_encoder{suffix}"] = ["transformers", type(encoder).__name__]
        index[f"tokenizer{suffix}"] = ["transformers", "CLIPTokenizer"]
    return index


def _write_scheduler(betas: Betas, prediction_type: str, folder: Path) -> None:
    start, end, schedule = betas
    DDIMScheduler(
        beta_start=start, beta_end=end, beta_schedule=schedule, steps_offset=1, clip_sample=False,
        timestep_spacing="leading", prediction_type=prediction_type,
    ).save_pretrained(folder / "scheduler")  # fmt: skip


def motion_adapter(motion: MotionModule) -> MotionAdapter:
    """The same weights as diffusers' MotionAdapter.

    diffusers normalises over all frames at once, so its clips differ from ours where
    `frame_norm` is "frame".
    """
    config = motion.config
    adapter = MotionAdapter(
        block_out_channels=config.block_out_channels,
        motion_layers_per_block=config.layers_per_block,
        motion_mid_block_layers_per_block=1,
        motion_num_attention_heads=config.num_attention_heads,
        motion_norm_num_groups=config.norm_num_groups,
        motion_max_seq_length=config.max_frames,
        use_motion_mid_block=config.mid_block,
        conv_in_channels=config.conv_in_channels,
    )
    tensors = {diffusers_key(key): tensor for key, tensor in motion.state_dict().items()}
    own = adapter.state_dict()
    left_out = {key for key in own if key.endswith("pos_embed.pe")}
    assert own.keys() - tensors.keys() == left_out
    assert not tensors.keys() - own.keys()
    adapter.load_state_dict({**own, **tensors})
    return adapter


def diffusers_key(key: str) -> str:
    """An official key as diffusers names it."""
    key = key.replace(".temporal_transformer.", ".")
    for theirs, ours in FROM_DIFFUSERS:
        key = key.replace(ours, theirs)
    return key
