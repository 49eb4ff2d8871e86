"""The control maps of prompt-travel's JSON, as our records; the rest is rejected by its key."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from ..errors import Problem, Problems, PromptFileError, at
from .kinds import Index, Share, only
from .reading import validated
from .record import Record

log = logging.getLogger(__name__)

_SHARED = ("input_image_dir", "max_samples_on_vram", "max_models_on_vram", "save_detectmap",
           "preprocess_on_gpu", "is_loop", "no_shrink_list")  # fmt: skip
_V11 = "lllyasviel/control_v11"
_NETS = {
    **{
        f"controlnet_{kind}": f"{_V11}p_sd15_{kind}"
        for kind in ("canny", "inpaint", "lineart", "mlsd", "normalbae", "openpose", "scribble",
                     "seg", "softedge")
    },
    "controlnet_depth": f"{_V11}f1p_sd15_depth",
    "controlnet_tile": f"{_V11}f1e_sd15_tile",
    "controlnet_ip2p": f"{_V11}e_sd15_ip2p",
    "controlnet_shuffle": f"{_V11}e_sd15_shuffle",
    "controlnet_lineart_anime": f"{_V11}p_sd15s2_lineart_anime",
    "animatediff_controlnet": "crishhh/animatediff_controlnet/controlnet_checkpoint.ckpt",
}  # fmt: skip
"""The released ControlNets that the kinds stand for."""
_AS_THEY_ARE = ("controlnet_ip2p", "animatediff_controlnet")
"""Kinds whose condition is the image itself."""
_ADAPTERS = "h94/IP-Adapter/models"
_FORMS = {
    "is_full_face": "ip-adapter-full-face_sd15", "is_plus_face": "ip-adapter-plus-face_sd15",
    "is_plus": "ip-adapter-plus_sd15", "is_light": "ip-adapter_sd15_light",
}  # fmt: skip

ToPath = Callable[[str], str]


class Texts(Record):
    """A prompt by frame: the map's texts between the head's and the tail's."""

    prompt_map: Mapping[Index, str] | None = None
    head_prompt: str = ""
    tail_prompt: str = ""
    prompt_fixed_ratio: Share = 0.5
    """A text holds for this share of the way to the next one."""

    def travelled(self, frames: int, key: str) -> dict[int, str]:
        """Each text at its frame, and again at the frame until which it holds."""
        ends = self.head_prompt, self.tail_prompt
        texts = {
            frame: ",".join(one for one in (ends[0], text, ends[1]) if one)
            for frame, text in sorted((self.prompt_map or {0: ""}).items())
        }
        starts = [frame for frame in texts if frame < frames]
        if late := ", ".join(str(frame) for frame in texts if frame >= frames):
            message = "%s: the clip has %d frames (-L), so it does not come to %s"
            log.warning(message, key, frames, late)
        held = {frame: texts[frame] for frame in starts}
        following = [*starts[1:], frames] if len(starts) > 1 else []
        for start, end in zip(starts, following, strict=False):
            last = min(start + round((end - start) * self.prompt_fixed_ratio), end - 1)
            held[last] = texts[start]
        return dict(sorted(held.items()))


def is_off(section: Any) -> bool:
    """Whether a section is not there, empty, or switched off."""
    return not section or (isinstance(section, Mapping) and section.get("enable") is False)


def _off(section: Any) -> Any:
    if not is_off(section):
        raise ValueError("is not supported; set its enable to false")
    return section


Off = Annotated[Any, AfterValidator(_off)]
"""A section that must be switched off."""
IfEnabled = BeforeValidator(lambda section: None if is_off(section) else section)
"""A section that is none, whatever it has, if it is switched off."""


class _Net(Record):
    enable: Any = True
    use_preprocessor: Any = True
    preprocessor: Any = None
    guess_mode: Annotated[Any, only(False)] = False
    controlnet_conditioning_scale: Any = 1.0
    control_guidance_start: Any = 0.0
    control_guidance_end: Any = 1.0
    control_scale_list: Annotated[Any, only([])] = []
    control_region_list: Annotated[Any, only([])] = []


class _Images(Record):
    enable: Any = True
    input_image_dir: str = ""
    prompt_fixed_ratio: Share = 0.5
    save_input_image: Any = None
    resized_to_square: Annotated[Any, only(False)] = False
    scale: Any = 0.5
    is_full_face: Any = False
    is_plus_face: Any = False
    is_plus: Any = False
    is_light: Any = False


class _Video(Record):
    enable: Any = True
    init_img_dir: str = ""
    save_init_image: Any = None
    denoising_strength: Any = 0.7


class _Condition(Texts):
    ip_adapter_map: Off = None


class _Region(Record):
    enable: Any = True
    crop_generation_rate: Annotated[Any, only(0)] = 0
    mask_dir: str = ""
    save_mask: Any = None
    is_init_img: Annotated[Any, only(False)] = False
    hint: Any = None
    condition: _Condition = _Condition()


class ControlMaps(Record):
    """The control maps of a file, each read if it is enabled."""

    controlnet_map: Annotated[Mapping[str, Any] | None, IfEnabled] = None
    ip_adapter_map: Annotated[_Images | None, IfEnabled] = None
    img2img_map: Annotated[_Video | None, IfEnabled] = None
    region_map: Mapping[str, Annotated[_Region | None, IfEnabled]] = {}


def control_settings(maps: ControlMaps, frames: int, path: ToPath) -> dict[str, Any]:
    """A job's settings from the enabled maps; `path` finds a file. All problems in one error."""
    settings: dict[str, Any] = {}
    problems = Problems()
    if maps.controlnet_map is not None:
        folder = path(str(maps.controlnet_map.get("input_image_dir") or "")).rstrip("/")
        settings["controlnets"] = []
        for kind, values in maps.controlnet_map.items():
            if kind not in _SHARED and not is_off(values):
                with problems.collecting(), at("controlnet_map"), at(kind):
                    settings["controlnets"].append(_controlnet(kind, values, folder))
    if maps.ip_adapter_map is not None:
        with problems.collecting(), at("ip_adapter_map"):
            settings["ip_adapters"] = [_ip_adapter(maps.ip_adapter_map, frames, path)]
    if video := maps.img2img_map:
        images = _images(path(video.init_img_dir))
        settings["start"] = {"images": images, "strength": video.denoising_strength}
    regions = ((k, region) for k, region in maps.region_map.items() if k != "background" and region)
    settings["regions"] = [
        {
            "prompt": region.condition.travelled(frames, f"region_map.{name}.condition"),
            "mask": _images(path(region.mask_dir)),
        }
        for name, region in regions
    ]
    problems.check()
    return settings


def _images(path: str) -> dict[str, Any]:
    return {"path": path, "fit": "crop"}


def _controlnet(kind: str, values: Any, folder: str) -> dict[str, Any]:
    if kind not in _NETS:
        raise PromptFileError("is not supported; remove it or set its enable to false")
    net = validated(_Net, values)
    computed = net.use_preprocessor and kind not in _AS_THEY_ARE
    if computed and (kind != "controlnet_canny" or net.preprocessor):
        message = "only canny's default one is supported; give ready conditions and set it to false"
        raise PromptFileError([Problem(message, "use_preprocessor")])
    return {
        "path": _NETS[kind],
        "images": _images(f"{folder}/{kind}"),
        "canny": {} if computed else None,
        "strength": net.controlnet_conditioning_scale,
        "start": net.control_guidance_start,
        "end": net.control_guidance_end,
    }


def _ip_adapter(given: _Images, frames: int, path: ToPath) -> dict[str, Any]:
    folder = Path(path(given.input_image_dir))
    files = sorted(folder.glob("[0-9]*"))
    by_frame = {int(file.stem): str(file) for file in files if file.stem.isdecimal()}
    if not by_frame:
        message = f"{folder} has no images named by their frame"
        raise PromptFileError([Problem(message, "input_image_dir")])
    form = next((name for key, name in _FORMS.items() if getattr(given, key)), "ip-adapter_sd15")
    held = Texts(prompt_map=by_frame, prompt_fixed_ratio=given.prompt_fixed_ratio)
    return {
        "path": f"{_ADAPTERS}/{form}.safetensors",
        "images": held.travelled(frames, "ip_adapter_map.input_image_dir"),
        "encoder": f"{_ADAPTERS}/image_encoder",
        "scale": given.scale,
    }
