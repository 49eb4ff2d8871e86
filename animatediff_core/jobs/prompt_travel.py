"""The JSON files of animatediff-cli and of its fork with prompt travel.

Sizes and lengths stand on those programs' command lines, and so they do here (-W -H -L -C -O -S).
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .building import Entry
from .peers import SD15, found, listed
from .prompt_travel_control import CONTROL_MAPS, control_settings, is_off, section
from .reader import check_keys

log = logging.getLogger(__name__)

_SAME = ("name", "scheduler", "steps", "guidance_scale", "clip_skip")
_USUAL = {"scheduler": "k_dpmpp_2m", "steps": 25, "guidance_scale": 7.5}
_TEXTS = ("prompts", "prompt", "n_prompts", "n_prompt", "head_prompt", "prompt_map", "tail_prompt")
_OTHER_COMMANDS = ("upscale_config", "stylize_config", "result")
"""Sections that those programs' `generate` does not read."""
_MUST_BE = {
    "base": ("", None), "compile": (False,), "unet_batch_size": (1,),
    "context_schedule": ("uniform",), "is_single_prompt_mode": (False,),
}  # fmt: skip
"""Settings of which one value alone means what is done here."""
_MUST_BE_OFF = ("lcm_map", "gradual_latent_hires_fix_map")
_KNOWN = (
    *_SAME, *_TEXTS, *_OTHER_COMMANDS, *_MUST_BE, *_MUST_BE_OFF, *CONTROL_MAPS, "path",
    "motion_module", "vae_path", "lora_map", "motion_lora_map", "seed", "prompt_fixed_ratio",
    "tensor_interpolation_slerp", "output",
)  # fmt: skip
_OUTPUT = ("format", "fps", "encode_param", "preview_steps")
_FORMATS = {"h264": ("mp4", "h264"), "hevc": ("mp4", "h265"), "mp4": ("mp4", None)}


def is_travel_json(content: Mapping[Any, Any]) -> bool:
    """Whether a mapping is of this form: both programs need these keys."""
    return {"path", "motion_module"} <= content.keys() and "jobs" not in content


def travel_entries(
    content: Mapping[str, Any],
    folder: Path,
    root: Path | None,
    lengths: tuple[int, int],
    problems: list[str],
) -> list[Entry]:
    """Every clip of a file; `lengths` are the clip's and the window's frames. Those programs loop
    whatever is longer than a window, and nothing else."""
    frames, window = lengths
    check_keys(content, _KNOWN, "", problems)
    for key, values in _MUST_BE.items():
        if content.get(key, values[0]) not in values:
            problems.append(f"{key}: {content[key]!r} is not supported; {values[0]!r} is")
    for key in _MUST_BE_OFF:
        if not is_off(content.get(key)):
            problems.append(f"{key}: is not supported; set its enable to false")
    for key in set(_OTHER_COMMANDS[:2]) & content.keys():
        log.warning("%s is for another command of that program; generate does not use it", key)

    def path(value: Any) -> str:
        return found(str(value or ""), folder, root, "data")

    def travel(section: Mapping[str, Any], place: str) -> dict[int, str]:
        return travelled(section, place, frames, problems)

    shared = {**_USUAL, **{key: content[key] for key in _SAME if key in content}} | {
        "base": path(content["path"]) or SD15,
        "motion": path(content["motion_module"]) or None,
        "vae": path(content.get("vae_path")) or None,
        "loras": _adapters(content, "lora_map", path, problems),
        "motion_loras": _adapters(content, "motion_lora_map", path, problems),
        "window": {"length": window} | ({"schedule": "looped_uniform"} if frames > window else {}),
        "output": _output(content.get("output"), problems),
        **control_settings(content, travel, path, problems),
    }
    travels = "prompt_map" in content
    if travels:
        shared["travel"] = "slerp" if content.get("tensor_interpolation_slerp", True) else "linear"
        prompts: list[Any] = [travel(content, "")]
    else:
        prompts = listed(content.get("prompts", content.get("prompt")))
    if not prompts:
        problems.append("prompts: must be a list of at least one text")
    negatives = listed(content.get("n_prompts", content.get("n_prompt"))) or [""]
    if len(negatives) > max(len(prompts), 1):
        log.warning("of %d negative prompts the first %d are used", len(negatives), len(prompts))
    folders = (folder, *(place / "data" for place in folder.absolute().parents))
    return [
        Entry(
            "" if travels else f"prompts[{index}].",
            {**shared, "prompt": prompt, "negative_prompt": negatives[index % len(negatives)],
             "seed": _seed(content, index, len(prompts))},
            folders,
        )
        for index, prompt in enumerate(prompts)
    ]  # fmt: skip


def travelled(
    content: Mapping[str, Any], place: str, frames: int, problems: list[str]
) -> dict[int, str]:
    """The prompt by frame: the map's texts between the head's and the tail's. A text holds for
    prompt_fixed_ratio of the way to the next one."""
    given = content.get("prompt_map")
    if not isinstance(given, Mapping) or not given:
        problems.append(f"{place}prompt_map: must map frame numbers to texts")
        return {}
    ends = [content.get(key) or "" for key in ("head_prompt", "tail_prompt")]
    ratio = content.get("prompt_fixed_ratio", 0.5)
    if not isinstance(ratio, int | float) or not 0 <= ratio <= 1:
        problems.append(f"{place}prompt_fixed_ratio: must be 0 to 1, got {ratio!r}")
        return {}
    texts = {}
    for frame, text in given.items():
        if not str(frame).isdecimal() or not all(isinstance(one, str) for one in (text, *ends)):
            problems.append(f"{place}prompt_map: must map frame numbers to texts")
            return {}
        texts[int(frame)] = ",".join(one for one in (ends[0], text, ends[1]) if one)
    late = sorted(frame for frame in texts if frame >= frames)
    if late:
        log.warning("%sprompt_map: the clip has %d frames (-L), so it does not come to %s",
                    place, frames, ", ".join(map(str, late)))  # fmt: skip
    kept = {frame: text for frame, text in sorted(texts.items()) if frame < frames}
    return _holding(kept, ratio)


def _holding(texts: dict[int, str], ratio: float) -> dict[int, str]:
    """Each text again at the frame until which it holds. The first one serves the frames before
    it too."""
    if not texts:
        return texts
    starts = list(texts)
    held = {0: texts[starts[0]], **texts}
    for start, end in zip(starts, starts[1:], strict=False):
        held[min(start + round((end - start) * ratio), end - 1)] = texts[start]
    return dict(sorted(held.items()))


def _seed(content: Mapping[str, Any], index: int, prompts: int) -> Any:
    """Prompts take the seeds in turn; one prompt alone is made with each of them."""
    seeds = listed(content.get("seed")) or [-1]
    return seeds if prompts == 1 else seeds[index % len(seeds)]


def _adapters(
    content: Mapping[str, Any], key: str, path: Any, problems: list[str]
) -> list[dict[str, Any]]:
    given = content.get(key) or {}
    if not isinstance(given, Mapping):
        problems.append(f"{key}: must map paths to scales")
        return []
    for name, scale in given.items():
        if isinstance(scale, Mapping):
            problems.append(
                f"{key}.{name}: a scale by frame or region is not supported; give one number"
            )
    return [{"path": path(name), "scale": s} for name, s in given.items()
            if not isinstance(s, Mapping)]  # fmt: skip


def _output(given: Any, problems: list[str]) -> dict[str, Any]:
    given = section(given, _OUTPUT, "output", problems)
    if given.get("preview_steps"):
        problems.append("output.preview_steps: is not supported; remove it")
    named = given.get("format", "gif")
    format, codec = _FORMATS.get(named, (named, None)) if isinstance(named, str) else (named, None)
    output = {"format": format, "codec": codec, "fps": given.get("fps", 8)}
    encoding = section(given.get("encode_param"), ("crf",), "output.encode_param", problems)
    if "crf" in encoding:
        if format in ("mp4", "webm"):
            output["crf"] = encoding["crf"]
        else:
            log.warning("output.encode_param.crf: has no effect on %s", format)
    return output
