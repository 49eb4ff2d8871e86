"""The official AnimateDiff prompt files of all dates.

A list of models, each with lists of prompts and seeds; in 2023 a mapping of names to models; on the
SDXL branch one model alone. The official script writes the same forms into its results.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from ..errors import Problem, Problems
from .building import Entry
from .extending import FILE_KEYS
from .kinds import Empty, Whole, only
from .peers import SD15, SDXL, found
from .reading import validated
from .record import Record

_VERSIONS = {"inference-v1": "v1", "inference-v2": "v2", "inference-v3": "v3"}
_SAME = {"W": "width", "H": "height", "L": "frames", "steps": "steps",
         "guidance_scale": "guidance_scale"}  # fmt: skip
_SDXL = {"width": 1024, "height": 1024, "steps": 100, "guidance_scale": 10, "scheduler": "euler"}
"""Defaults of the SDXL branch's script."""


class _Move(Record):
    """A MotionLoRA of a model."""

    path: str
    alpha: Any = 1.0


class _Noise(Record):
    """Noise schedule that the SDXL branch's script writes into its results."""

    beta_start: Any
    beta_end: Any
    beta_schedule: Any
    num_train_timesteps: Any = 1000


class _Model(Record):
    """A model of any date; one value of a list serves all prompts."""

    dreambooth_path: str = ""
    base: str = ""
    path: str = ""
    """Until September 2023: a LoRA if there is a `base`, else the model."""
    base_model_path: str = ""
    ckpt_path: str = ""
    lora_model_path: str = ""
    lora_path: str = ""
    lora_alpha: Any = 0.8
    motion_module: tuple[str, ...] = ()
    """The clips are made with each of them."""
    motion_module_path: str = ""
    motion_module_lora_configs: tuple[_Move, ...] = ()
    adapter_lora_path: str = ""
    adapter_lora_scale: Any = 1.0
    domain_lora_scale: Annotated[Any, only(1.0)] = 1.0
    inference_config: str = ""
    unet_additional_kwargs: Any = None
    """Not needed, as `controlnet_config`: the files themselves say how they are built."""
    noise_scheduler_kwargs: _Noise | None = None
    controlnet_config: Any = None
    controlnet_path: str = ""
    controlnet_images: tuple[str, ...] = ()
    controlnet_image_indexs: tuple[Whole, ...] = (0,)
    normalize_condition_images: Any = False
    control: Empty = None
    init_image: Empty = None
    additional_networks: Empty = None
    seed: tuple[Any, ...] = ()
    random_seed: tuple[Any, ...] = ()
    """The seeds that were drawn, in a file that the script has written."""
    steps: Any = None
    guidance_scale: Any = None
    prompt: tuple[Any, ...]
    n_prompt: tuple[Any, ...] = ()
    W: Any = None
    H: Any = None
    L: Any = None

    def misfits(self) -> Iterator[Problem]:
        count = len(self.prompt)
        if not count:
            yield Problem("must be a list of at least one text", "prompt")
        for key in ("n_prompt", "seed", "random_seed"):
            values = len(getattr(self, key))
            if count and values not in (0, 1, count):
                message = f"has {values} values for {count} prompts; give one for all or one each"
                yield Problem(message, key)
        images, frames = len(self.controlnet_images), len(self.controlnet_image_indexs)
        if self.controlnet_path and images != frames:
            message = f"has {frames} frames for {images} controlnet_images; give one for each"
            yield Problem(message, "controlnet_image_indexs")
        others = (self.controlnet_config, self.controlnet_images, self.normalize_condition_images)
        if any(others) and not self.controlnet_path:
            yield Problem("is missing, but other controlnet keys are there", "controlnet_path")


def official_models(content: Any, file: str) -> list[tuple[str, Any]] | None:
    """The models of an official file, each with its place in messages; None for other files."""
    if isinstance(content, list):
        return [(f"{file}: [{index}]", values) for index, values in enumerate(content)]
    if not isinstance(content, Mapping):
        return None
    if "motion_module_path" in content and "jobs" not in content:
        return [(file, content)]
    models = [one for one in content.values() if isinstance(one, Mapping) and "prompt" in one]
    if models and len(models) == len(content) and not content.keys() & set(FILE_KEYS):
        return [(f"{file}: {name}", values) for name, values in content.items()]
    return None


def official_entries(
    models: Sequence[tuple[str, Any]], folder: Path, root: Path | None
) -> tuple[list[Entry], list[Problem]]:
    """Every clip of an official file's models, and what is wrong with them."""
    entries, problems = list[Entry](), Problems()
    for where, values in models:
        with problems.collecting(where):
            model = validated(_Model, values)
            shared = _shared(model, folder, root)
            for motion in model.motion_module or (model.motion_module_path,):
                settings = {**shared, "motion": found(motion, folder, root) or None}
                entries += _entries(model, settings, folder, where)
    return entries, problems.found


def _entries(model: _Model, shared: Mapping[str, Any], folder: Path, where: str) -> Iterator[Entry]:
    negatives, seeds = model.n_prompt or ("",), model.random_seed or model.seed or (-1,)
    for number, prompt in enumerate(model.prompt):
        texts = {
            "prompt": prompt,
            "negative_prompt": negatives[number % len(negatives)],
            "seed": seeds[number % len(seeds)],
        }
        yield Entry(f"{where}.prompt[{number}]", {**shared, **texts}, (folder,))


def _shared(model: _Model, folder: Path, root: Path | None) -> dict[str, Any]:
    """The settings of all clips of a model but its motion module."""

    def path(name: str) -> str:
        return found(name, folder, root)

    def scaled(*adapters: tuple[str, Any]) -> list[dict[str, Any]]:
        return [{"path": path(name), "scale": scale} for name, scale in adapters if name]

    sdxl = bool(model.motion_module_path)
    base = model.ckpt_path or model.base_model_path or model.dreambooth_path
    settings: dict[str, Any] = {
        **(_SDXL if sdxl else {}),
        "base": path(base or model.base or model.path) or (SDXL if sdxl else SD15),
        "motion_version": _VERSIONS.get(Path(model.inference_config).stem),
        "loras": scaled(
            (model.path if model.base else "", model.lora_alpha),
            (model.lora_model_path or model.lora_path, model.lora_alpha),
            (model.adapter_lora_path, model.adapter_lora_scale),
        ),
        "motion_loras": scaled(
            *((one.path, one.alpha) for one in model.motion_module_lora_configs)
        ),
    }
    if noise := model.noise_scheduler_kwargs:
        settings["betas"] = [noise.beta_start, noise.beta_end, noise.beta_schedule]
    if model.controlnet_path:
        images = zip(model.controlnet_image_indexs, model.controlnet_images, strict=True)
        settings["sparse_controls"] = [
            {
                "path": path(model.controlnet_path),
                "images": {frame: path(image) for frame, image in images},
                "normalize": model.normalize_condition_images,
            }
        ]
    values = {name: getattr(model, key) for key, name in _SAME.items()}
    return settings | {name: value for name, value in values.items() if value is not None}
