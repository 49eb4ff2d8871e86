"""Models as files: a diffusers folder, one motion file, one single-file checkpoint.

The folder is what we and stock diffusers both open; the files are in the layouts that every other
program knows.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers.schedulers import DDIMScheduler
from torch import nn

from ..errors import CheckpointError
from ..jobs import KEPT_FOLDER, RECORD_FILE
from ..media.atomic import disk_errors
from ..motion import MotionConfig, MotionModule
from ..weights.files import write_tensors
from .base_model import BaseModel
from .motion_adapter import motion_adapter
from .motion_files import MOTION_FILE
from .motion_module import save_motion_module
from .sd_names import single_file_tensors

KeptAdapter = tuple[str, float, Sequence[Path]]
"""Role, scale and files: one, or several of one folder."""


def write_pipeline_folder(
    base: BaseModel,
    motion: MotionModule,
    folder: Path,
    record: Mapping[str, object],
    adapters: Sequence[KeptAdapter] = (),
) -> None:
    """Write the parts, the motion module in both forms, and `record`, what they came from.

    `adapters` stay files of their own, which only we apply. The folder appears whole or not at all;
    one that exists is not touched (CheckpointError).
    """
    with together([folder]) as (staged,):
        index = _write_base(base, staged)
        if len(base.text_encoders) == 1:
            index["_class_name"] = "AnimateDiffPipeline"
            index |= {"feature_extractor": [None, None], "image_encoder": [None, None]}
        else:
            index["_class_name"] = "AnimateDiffSDXLPipeline"
        if motion.config.conv_in_channels is not None:
            index["_class_name"] = "PIAPipeline"
        index["motion_adapter"] = ["diffusers", "MotionAdapter"]
        _write_scheduler(motion.config, base, staged)
        adapter = motion_adapter(motion)
        nn.Module.to(adapter, dtype=base.unet.dtype)  # diffusers' own warns of nothing here
        adapter.save_pretrained(staged / "motion_adapter")
        save_motion_module(motion, staged / MOTION_FILE)
        copied = list(_copied(adapters, staged / KEPT_FOLDER))
        content = {"motion": asdict(motion.config), **record, "adapters": copied}
        (staged / RECORD_FILE).write_text(json.dumps(content, indent=1), "utf-8")
        (staged / "model_index.json").write_text(json.dumps(index, indent=1), "utf-8")


def write_base_folder(base: BaseModel, folder: Path) -> None:
    """Write an image model as stock diffusers' StableDiffusionPipeline opens it."""
    with together([folder]) as (staged,):
        index = _write_base(base, staged)
        index["_class_name"] = "StableDiffusionPipeline"
        if len(base.text_encoders) == 1:
            index |= {"feature_extractor": [None, None], "safety_checker": [None, None]}
        else:
            index["_class_name"] = "StableDiffusionXLPipeline"
        _write_scheduler(MotionConfig(betas=base.betas), base, staged)
        (staged / "model_index.json").write_text(json.dumps(index, indent=1), "utf-8")


def write_single_file(base: BaseModel, path: Path) -> None:
    """The layout of the first release, with the marks that say what the UNet predicts."""
    tensors = single_file_tensors(base)
    predicts = base.prediction_type.replace("v_prediction", "v")
    if predicts == "v":
        tensors["v_pred"] = torch.zeros(0)
    if base.zero_snr:
        tensors["ztsnr"] = torch.zeros(0)
    write_tensors(path, tensors, {"format": "pt", "modelspec.prediction_type": predicts})


@contextmanager
def together(targets: Sequence[Path]) -> Iterator[list[Path]]:
    """A path beside each target to write it at; all take their names only if all went well.

    Nothing that exists is overwritten (CheckpointError), except an empty folder.
    """
    placed: list[Path] = []
    with ExitStack() as stack:
        staged = [stack.enter_context(_beside(target)) for target in targets]
        yield staged
        try:
            for path, target in zip(staged, targets, strict=True):
                with disk_errors(target):
                    check_free(target)
                    path.chmod(0o755 if path.is_dir() else 0o644)
                    if target.exists():
                        target.rmdir()
                    os.replace(path, target)
                placed.append(target)
        except BaseException:
            for target in placed:
                shutil.rmtree(target) if target.is_dir() else target.unlink()
            raise


def check_free(target: Path) -> None:
    """CheckpointError where a file or a folder that is not empty has this name."""
    if target.is_dir() and any(target.iterdir()):
        raise CheckpointError(f"{target}: exists already and is not empty; choose another name")
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{target}: exists already; choose another name")


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    with disk_errors(target):
        check_free(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        with disk_errors(target):
            yield folder / target.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _copied(adapters: Sequence[KeptAdapter], folder: Path) -> Iterator[dict[str, object]]:
    """Copy adapters under names of their own; yields how the record lists them."""
    if adapters:
        folder.mkdir()
    for role, scale, files in adapters:
        source = files[0] if len(files) == 1 else files[0].parent
        name, number = source.name, 2
        while (folder / name).exists():
            name, number = f"{source.stem}-{number}{source.suffix}", number + 1
        if source != files[0]:
            (folder / name).mkdir()
        for file in files:
            shutil.copyfile(file, folder / name / file.relative_to(source))
        yield {"role": role, "file": name, "scale": scale}


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


def _write_scheduler(config: MotionConfig, base: BaseModel, folder: Path) -> None:
    start, end, schedule = config.betas
    spacing = "trailing" if base.zero_snr else config.timestep_spacing
    DDIMScheduler(
        beta_start=start,
        beta_end=end,
        beta_schedule=schedule,
        steps_offset=1,
        clip_sample=False,
        timestep_spacing=spacing,
        prediction_type=base.prediction_type,
        rescale_betas_zero_snr=base.zero_snr,
    ).save_pretrained(folder / "scheduler")
