"""Reads a training YAML: our own keys, and the official training files as they are.

Every problem of a file is reported at once; no key is ignored in silence.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from ..errors import Problem, Problems, PromptFileError, TrainingError
from ..jobs.documents import parsed
from ..jobs.extending import read_text
from ..jobs.kinds import FileText, Flag, only
from ..jobs.reading import validated
from ..jobs.record import Record, kinds_of, nested
from .config import TrainConfig

_ALIASES = {
    "pretrained_model_path": "base",
    "global_seed": "seed",
    "train_data": "data",
    "validation_data": "validation",
    "unet_checkpoint_path": "unet",
    "adam_weight_decay": "weight_decay",
    "validation_steps": "validation.every",
    "validation_steps_tuple": "validation.at",
}
"""Official names, or our longer ones, of TrainConfig's settings."""
_VALIDATION_ALIASES = {"num_inference_steps": "steps"}


class _Noise(Record):
    """The official noise schedule; steps_offset acts in sampling alone."""

    num_train_timesteps: Annotated[Any, only(1000)] = 1000
    steps_offset: Annotated[Any, only(0, 1)] = 0
    clip_sample: Annotated[Any, only(False)] = False
    beta_start: Any = 0.00085
    beta_end: Any = 0.012
    beta_schedule: Any = "linear"


class _MotionModule(Record):
    num_transformer_block: Annotated[Any, only(1)] = 1
    attention_block_types: Annotated[Any, only(["Temporal_Self", "Temporal_Self"])] = None
    temporal_position_encoding: Annotated[Any, only(True)] = True
    temporal_attention_dim_div: Annotated[Any, only(1)] = 1
    zero_initialize: Annotated[Any, only(True)] = True
    num_attention_heads: Annotated[Any, only(8)] = 8
    temporal_position_encoding_max_len: Any = None


class _UNet(Record):
    """Official settings of the UNet and where its motion module is, and the values built here."""

    use_inflated_groupnorm: Flag = False
    use_motion_module: Flag = True
    motion_module_type: Annotated[Any, only("Vanilla")] = "Vanilla"
    motion_module_resolutions: Annotated[Any, only([1, 2, 4, 8], [1, 2, 4])] = None
    motion_module_mid_block: Flag = False
    motion_module_decoder_only: Annotated[Any, only(False)] = False
    motion_module_kwargs: _MotionModule = _MotionModule()
    unet_use_cross_frame_attention: Annotated[Any, only(False)] = False
    unet_use_temporal_attention: Annotated[Any, only(False)] = False

    def misfits(self) -> Iterator[Problem]:
        if self.motion_module_mid_block and not self.use_inflated_groupnorm:
            yield Problem("a mid block needs use_inflated_groupnorm: true")


class _Official(Record):
    """Keys of the official files that are not settings of ours."""

    image_finetune: Flag | None = None
    mixed_precision_training: Flag | None = None
    noise_scheduler_kwargs: _Noise | None = None
    unet_additional_kwargs: _UNet | None = None
    trainable_modules: Annotated[Any, only(["motion_modules."], ["."])] = None
    max_train_epoch: Annotated[Any, only(-1, None, hint="count in steps instead")] = -1
    checkpointing_epochs: Annotated[Any, only(-1, None, hint="count in steps instead")] = -1
    is_debug: Annotated[Any, only(False, hint="use --dry-run instead")] = False
    enable_xformers_memory_efficient_attention: Annotated[Any, only(True, False)] = False
    """torch's own fused attention serves both."""

    def misfits(self) -> Iterator[Problem]:
        unet = self.unet_additional_kwargs
        if unet and not unet.use_motion_module and not self.image_finetune:
            key = "unet_additional_kwargs.use_motion_module"
            yield Problem("false needs image_finetune: true", key)

    def settings(self) -> dict[str, Any]:
        """The settings of ours that the keys say."""
        settings: dict[str, Any] = {}
        if self.image_finetune is not None:
            settings["stage"] = "image" if self.image_finetune else "motion"
        if self.mixed_precision_training is not None:
            settings["mixed_precision"] = "fp16" if self.mixed_precision_training else "no"
        if noise := self.noise_scheduler_kwargs:
            settings["betas"] = [noise.beta_start, noise.beta_end, noise.beta_schedule]
        if unet := self.unet_additional_kwargs:
            length = unet.motion_module_kwargs.temporal_position_encoding_max_len
            settings |= {} if length is None else {"max_frames": length}
            if unet.use_motion_module:
                others = "v3" if unet.use_inflated_groupnorm else "v1"
                settings["motion_version"] = "v2" if unet.motion_module_mid_block else others
        return settings


def load_train_config(path: Path, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """Read a file; `overrides` are dotted keys (`data.sample_size`) that win over it.

    Paths in the file are relative to the file's folder, overrides' to the working folder.
    """
    values = FileText.all_in(_parsed(path), path.parent)
    problems = Problems()
    settings: dict[str, Any] = {}
    official = {key: value for key, value in values.items() if key in kinds_of(_Official)}
    if "image_finetune" in official:  # also if another key is wrong
        settings["stage"] = "motion"
    with problems.collecting():
        settings = validated(_Official, official, error=TrainingError).settings()
    for key, value in values.items():
        if key not in official:
            settings = TrainConfig.merged(settings, _ours(str(key), value))
    for key, value in (overrides or {}).items():
        settings = TrainConfig.merged(settings, _ours(key, value))
    with problems.collecting():
        config = validated(TrainConfig, settings, error=TrainingError)
    if problems.found:
        raise TrainingError([Problem(one.message, one.key, str(path)) for one in problems.found])
    return config


def parse_override(text: str) -> tuple[str, Any]:
    """`KEY=VALUE` of the command line, the value read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise TrainingError(f"--set {text}: must be KEY=VALUE, for instance learning_rate=1e-5")
    try:
        return key, parsed(value, key)
    except PromptFileError as error:
        raise TrainingError(f"--set {error}") from error


def _parsed(path: Path) -> dict[str, Any]:
    try:
        values = parsed(read_text(path), str(path))
    except PromptFileError as error:
        raise TrainingError(str(error)) from error
    if not isinstance(values, dict):
        raise TrainingError(f"{path}: must be a mapping of settings such as base and train_data")
    return values


def _ours(key: str, value: Any) -> dict[str, Any]:
    """A dotted key as our settings, with its official names allowed on each level; an empty text is
    a setting's default."""
    first, *rest = key.split(".")
    path = [*_ALIASES.get(first, first).split("."), *rest]
    if isinstance(value, dict):
        names = _VALIDATION_ALIASES if path == ["validation"] else {}
        value = {names.get(k, k): None if v == "" else v for k, v in value.items()}
    if path[0] == "validation" and len(path) > 1:
        path[1] = _VALIDATION_ALIASES.get(path[1], path[1])
    return nested(".".join(path), None if value == "" else value)
