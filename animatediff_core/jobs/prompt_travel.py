"""The JSON files of animatediff-cli and of its fork with prompt travel.

Sizes and lengths are options of those programs' command lines, and so they are here (-W -H -L -C -O
-S).
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from ..errors import Problem, Problems
from .building import Entry
from .kinds import Empty, only
from .peers import SD15, found
from .prompt_travel_control import ControlMaps, Off, Texts, control_settings
from .reading import validated
from .record import Record

log = logging.getLogger(__name__)

_FORMATS = {"h264": ("mp4", "h264"), "hevc": ("mp4", "h265"), "mp4": ("mp4", None)}


class _Encoding(Record):
    crf: Any = None


class _Output(Record):
    format: Any = "gif"
    fps: Any = 8
    encode_param: _Encoding = _Encoding()
    preview_steps: Empty = None


class _File(Texts, ControlMaps):
    """A file of either program."""

    name: Any = None
    base: str = ""
    path: str
    """A LoRA if there is a base, else the model."""
    lora_alpha: Any = 0.8
    motion_module: str
    vae_path: str = ""
    scheduler: Any = "k_dpmpp_2m"
    steps: Any = 25
    guidance_scale: Any = 7.5
    clip_skip: Any = 1
    seed: tuple[Any, ...] = ()
    lora_map: Mapping[str, Any] = {}
    motion_lora_map: Mapping[str, Any] = {}
    output: _Output = _Output()
    prompts: tuple[Any, ...] = ()
    prompt: tuple[Any, ...] = ()
    n_prompts: tuple[Any, ...] = ()
    n_prompt: tuple[Any, ...] = ()
    tensor_interpolation_slerp: bool = True
    compile: Annotated[Any, only(False)] = False
    unet_batch_size: Annotated[Any, only(1)] = 1
    context_schedule: Annotated[Any, only("uniform")] = "uniform"
    is_single_prompt_mode: Annotated[Any, only(False)] = False
    lcm_map: Off = None
    gradual_latent_hires_fix_map: Off = None
    upscale_config: Any = None
    stylize_config: Any = None
    result: Any = None

    def misfits(self) -> Iterator[Problem]:
        listed = bool(self.prompts or self.prompt)
        mapped = bool(self.prompt_map or self.head_prompt or self.tail_prompt)
        if not listed and not mapped:
            yield Problem("must be a list of at least one text", "prompts")
        elif listed and mapped:
            message = "does not go with prompt_map, head_prompt or tail_prompt; give one of them"
            yield Problem(message, "prompts")
        for key in ("lora_map", "motion_lora_map"):
            for name, scale in getattr(self, key).items():
                if isinstance(scale, Mapping):
                    message = "a scale by frame or region is not supported; give one number"
                    yield Problem(message, f"{key}.{name}")


def is_travel_json(content: Mapping[Any, Any]) -> bool:
    """Whether a mapping is of this form: both programs need these keys."""
    return {"path", "motion_module"} <= content.keys() and "jobs" not in content


def travel_entries(
    content: Mapping[str, Any],
    folder: Path,
    root: Path | None,
    lengths: tuple[int, int],
    file: str,
) -> tuple[list[Entry], list[Problem]]:
    """Every clip of a file, and what is wrong with it; `lengths` are the clip's and the window's
    frames. Those programs loop whatever is longer than a window, and nothing else."""
    problems = Problems()
    with problems.collecting():
        given = validated(_File, content, file)
        with problems.collecting(file):
            shared = _shared(given, folder, root, lengths)
            return _entries(given, shared, folder, lengths[0], file), []
    return [], problems.found


def _shared(
    given: _File, folder: Path, root: Path | None, lengths: tuple[int, int]
) -> dict[str, Any]:
    """The settings of all clips."""
    frames, window = lengths
    for key in ("upscale_config", "stylize_config"):
        if getattr(given, key) is not None:
            log.warning("%s is for another command of that program; generate does not use it", key)

    def path(name: str) -> str:
        return found(name, folder, root, "data")

    loras = ({given.path: given.lora_alpha} if given.base else {}) | dict(given.lora_map)
    same = ("name", "scheduler", "steps", "guidance_scale", "clip_skip")
    return {
        **{key: getattr(given, key) for key in same},
        "travel_loop": not (given.prompts or given.prompt),
        "base": path(given.base or given.path) or SD15,
        "motion": path(given.motion_module) or None,
        "vae": path(given.vae_path) or None,
        "loras": [{"path": path(p), "scale": scale} for p, scale in loras.items()],
        "motion_loras": [
            {"path": path(p), "scale": scale} for p, scale in given.motion_lora_map.items()
        ],
        "window": {"length": window} | ({"schedule": "looped_uniform"} if frames > window else {}),
        "output": _output(given.output),
        **control_settings(given, frames, path),
    }


def _entries(
    given: _File, shared: Mapping[str, Any], folder: Path, frames: int, file: str
) -> list[Entry]:
    prompts: list[Any] = [*(given.prompts or given.prompt)]
    travel, wheres = "linear", [f"{file}: prompts[{index}]" for index in range(len(prompts))]
    if not prompts:
        prompts, wheres = [given.travelled(frames, "prompt_map")], [file]
        travel = "slerp" if given.tensor_interpolation_slerp else "linear"
    negatives = given.n_prompts or given.n_prompt or ("",)
    if len(negatives) > max(len(prompts), 1):
        log.warning("of %d negative prompts the first %d are used", len(negatives), len(prompts))
    folders = (folder, *(parent / "data" for parent in folder.absolute().parents))
    seeds = given.seed or (-1,)
    return [
        Entry(
            where,
            {
                **shared,
                "travel": travel,
                "prompt": prompt,
                "negative_prompt": negatives[index % len(negatives)],
                # prompts take the seeds in turn; one prompt alone is made with each of them
                "seed": list(seeds) if len(prompts) == 1 else seeds[index % len(seeds)],
            },
            folders,
        )
        for index, (where, prompt) in enumerate(zip(wheres, prompts, strict=True))
    ]


def _output(given: _Output) -> dict[str, Any]:
    format, codec = given.format, None
    if isinstance(format, str):
        format, codec = _FORMATS.get(format, (format, None))
    output = {"format": format, "codec": codec, "fps": given.fps}
    if given.encode_param.crf is not None:
        if format in ("mp4", "webm"):
            output["crf"] = given.encode_param.crf
        else:
            log.warning("output.encode_param.crf: has no effect on %s", format)
    return output
