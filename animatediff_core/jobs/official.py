"""The official AnimateDiff prompt files: a list of models, each with lists of prompts and seeds;
and the oldest of them, a mapping of names to models."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import Problem, Problems, PromptFileError
from .building import Entry
from .kinds import Whole
from .peers import SD15, found
from .reading import validated
from .record import Record

_VERSIONS = {"inference-v1": "v1", "inference-v2": "v2", "inference-v3": "v3"}


class _Clips(Record):
    """Settings of a model's clips that both forms have; one value serves all prompts."""

    lora_alpha: Any = 0.8
    seed: tuple[Any, ...] = ()
    steps: Any = None
    guidance_scale: Any = None
    prompt: tuple[Any, ...]
    n_prompt: tuple[Any, ...] = ()

    def misfits(self) -> Iterator[Problem]:
        count = len(self.prompt)
        if not count:
            yield Problem("must be a list of at least one text", "prompt")
        for key, values in (("n_prompt", self.n_prompt), ("seed", self.seed)):
            if count and len(values) not in (0, 1, count):
                yield Problem(
                    f"has {len(values)} values for {count} prompts; give one for all or one for "
                    "each",
                    key,
                )


class _Move(Record):
    """A MotionLoRA of a model."""

    path: str
    alpha: Any = 1.0


class _Model(_Clips):
    """A model of the list form."""

    dreambooth_path: str = ""
    lora_model_path: str = ""
    motion_module: str = ""
    adapter_lora_path: str = ""
    adapter_lora_scale: Any = 1.0
    inference_config: str = ""
    motion_module_lora_configs: tuple[_Move, ...] = ()
    controlnet_config: Any = None
    """Not needed: the file itself says what encodes the images."""
    controlnet_path: str = ""
    controlnet_images: tuple[str, ...] = ()
    controlnet_image_indexs: tuple[Whole, ...] = (0,)
    normalize_condition_images: Any = False
    W: Any = None
    H: Any = None
    L: Any = None

    def misfits(self) -> Iterator[Problem]:
        yield from super().misfits()
        images, frames = len(self.controlnet_images), len(self.controlnet_image_indexs)
        if self.controlnet_path and images != frames:
            yield Problem(
                f"has {frames} frames for {images} controlnet_images; give one for each",
                "controlnet_image_indexs",
            )
        others = (self.controlnet_config, self.controlnet_images, self.normalize_condition_images)
        if any(others) and not self.controlnet_path:
            yield Problem("is missing, but other controlnet keys are there", "controlnet_path")


class _Oldest(_Clips):
    """A model of the oldest form, which may name several motion modules."""

    base: str = ""
    path: str
    """A LoRA if there is a base, else the model."""
    motion_module: tuple[str, ...] = ("",)
    init_image: Any = None

    def misfits(self) -> Iterator[Problem]:
        yield from super().misfits()
        if self.init_image:
            yield Problem("is not supported; remove it", "init_image")

    def models(self) -> Iterator[_Model]:
        """The clips in the list form, a model for each motion module."""
        model: dict[str, Any] = {name: getattr(self, name) for name in _Clips.model_fields}
        model["dreambooth_path"] = self.base or self.path
        model["lora_model_path"] = self.path if self.base else ""
        for motion in self.motion_module or ("",):
            yield _Model(**model, motion_module=motion)


def is_oldest(content: Mapping[Any, Any]) -> bool:
    """Whether a mapping is of the oldest form: names of models that have a path and prompts."""
    return bool(content) and all(
        isinstance(one, Mapping) and {"path", "prompt"} <= one.keys() for one in content.values()
    )


def oldest_entries(
    content: Mapping[Any, Any], folder: Path, root: Path | None, file: str
) -> tuple[list[Entry], list[Problem]]:
    """Every clip of a file in the oldest form, and what is wrong with it."""
    entries, problems = list[Entry](), Problems()
    for name, values in content.items():
        where = f"{file}: {name}"
        with problems.collecting():
            for model in validated(_Oldest, values, where).models():
                entries += _entries(model, folder, root, where)
    return entries, problems.found


def official_entries(
    content: list[Any], folder: Path, root: Path | None, file: str
) -> tuple[list[Entry], list[Problem]]:
    """Every clip of a file in the list form, and what is wrong with it."""
    entries, problems = list[Entry](), Problems()
    for index, values in enumerate(content):
        where = f"{file}: [{index}]"
        with problems.collecting():
            if not isinstance(values, Mapping):
                message = "must be a mapping, as in the official prompt files"
                raise PromptFileError([Problem(message, where=where)])
            entries += _entries(validated(_Model, values, where), folder, root, where)
    return entries, problems.found


def _entries(model: _Model, folder: Path, root: Path | None, where: str) -> list[Entry]:
    shared = _shared(model, folder, root)
    count = len(model.prompt)
    negatives, seeds = model.n_prompt or ("",), model.seed or (-1,)
    rows = zip(
        model.prompt,
        negatives * count if len(negatives) == 1 else negatives,
        seeds * count if len(seeds) == 1 else seeds,
        strict=True,
    )
    return [
        Entry(
            f"{where}.prompt[{number}]",
            {**shared, "prompt": prompt, "negative_prompt": negative, "seed": seed},
            (folder,),
        )
        for number, (prompt, negative, seed) in enumerate(rows)
    ]


def _shared(model: _Model, folder: Path, root: Path | None) -> dict[str, Any]:
    """The settings of all clips of a model."""

    def path(name: str) -> str:
        return found(name, folder, root)

    adapters = (
        (model.lora_model_path, model.lora_alpha),
        (model.adapter_lora_path, model.adapter_lora_scale),
    )
    settings: dict[str, Any] = {
        "base": path(model.dreambooth_path) or SD15,
        "motion": path(model.motion_module) or None,
        "motion_version": _VERSIONS.get(Path(model.inference_config).stem),
        "loras": [{"path": path(name), "scale": scale} for name, scale in adapters if name],
        "motion_loras": [
            {"path": path(move.path), "scale": move.alpha}
            for move in model.motion_module_lora_configs
        ],
    }
    if model.controlnet_path:
        images = zip(model.controlnet_image_indexs, model.controlnet_images, strict=True)
        settings["sparse_controls"] = [
            {
                "path": path(model.controlnet_path),
                "images": {frame: path(image) for frame, image in images},
                "normalize": model.normalize_condition_images,
            }
        ]
    names = {
        "W": "width",
        "H": "height",
        "L": "frames",
        "steps": "steps",
        "guidance_scale": "guidance_scale",
    }
    return settings | {
        name: getattr(model, key) for key, name in names.items() if getattr(model, key) is not None
    }
