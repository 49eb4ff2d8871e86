"""The control maps of prompt-travel's JSON, as our records; what these cannot say is refused."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from .reader import check_keys

CONTROL_MAPS = ("controlnet_map", "ip_adapter_map", "img2img_map", "region_map")
_SHARED = ("input_image_dir", "max_samples_on_vram", "max_models_on_vram", "save_detectmap",
           "preprocess_on_gpu", "is_loop", "no_shrink_list")  # fmt: skip
_OF_NET = (
    "enable", "use_preprocessor", "preprocessor", "guess_mode", "controlnet_conditioning_scale",
    "control_guidance_start", "control_guidance_end", "control_scale_list", "control_region_list",
)  # fmt: skip
_OF_IMAGES = (
    "enable", "input_image_dir", "prompt_fixed_ratio", "save_input_image", "resized_to_square",
    "scale", "is_full_face", "is_plus_face", "is_plus", "is_light",
)  # fmt: skip
_OF_REGION = ("enable", "crop_generation_rate", "mask_dir", "save_mask", "is_init_img",
              "condition")  # fmt: skip
_OF_CONDITION = ("prompt_fixed_ratio", "head_prompt", "prompt_map", "tail_prompt",
                 "ip_adapter_map")  # fmt: skip
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
"""Kinds whose condition is the picture itself."""
_ADAPTERS = "h94/IP-Adapter/models"
_FORMS = {
    "is_full_face": "ip-adapter-full-face_sd15", "is_plus_face": "ip-adapter-plus-face_sd15",
    "is_plus": "ip-adapter-plus_sd15", "is_light": "ip-adapter_sd15_light",
}  # fmt: skip

ToPath = Callable[[Any], str]
Travel = Callable[[Mapping[str, Any], str], dict[int, str]]


def is_off(given: Any) -> bool:
    """Whether a section is not there, empty, or switched off."""
    return not given or (isinstance(given, Mapping) and given.get("enable") is False)


def section(
    given: Any, known: Collection[str], place: str, problems: list[str]
) -> Mapping[str, Any]:
    """A section with known keys; empty, and a problem, where it is none."""
    if given is None or isinstance(given, Mapping):
        check_keys(given or {}, known, f"{place}.", problems)
        return given or {}
    problems.append(f"{place}: must be a mapping of {', '.join(known)}")
    return {}


def control_settings(
    content: Mapping[str, Any], travel: Travel, path: ToPath, problems: list[str]
) -> dict[str, Any]:
    """A job's settings from the enabled maps; `travel` reads texts by frame (prompt_map and what
    stands around it), `path` finds a file."""
    maps: dict[str, Mapping[str, Any]] = {}
    for key in CONTROL_MAPS:
        given = content.get(key)
        if given and not isinstance(given, Mapping):
            problems.append(f"{key}: must be a mapping")
        elif given and not is_off(given):
            maps[key] = given
    settings: dict[str, Any] = {}
    if "controlnet_map" in maps:
        settings["controlnets"] = _controlnets(maps["controlnet_map"], path, problems)
    if "ip_adapter_map" in maps:
        settings["ip_adapters"] = _ip_adapters(maps["ip_adapter_map"], travel, path, problems)
    if "img2img_map" in maps:
        known = ("enable", "init_img_dir", "save_init_image", "denoising_strength")
        given = section(maps["img2img_map"], known, "img2img_map", problems)
        settings["start"] = {
            "pictures": _pictures(path(given.get("init_img_dir"))),
            "strength": given.get("denoising_strength", 0.7),
        }
    if "region_map" in maps:
        settings["regions"] = _regions(maps["region_map"], travel, path, problems)
    return settings


def _refuse(
    given: Mapping[str, Any], allowed: Mapping[str, Any], place: str, problems: list[str]
) -> None:
    """A problem for each key with another value than the one that is done here."""
    for key, value in allowed.items():
        if given.get(key, value) != value:
            problems.append(f"{place}.{key}: {given[key]!r} is not supported; {value!r} is")


def _pictures(path: str) -> dict[str, Any]:
    return {"path": path, "fit": "crop"}


def _controlnets(given: Mapping[str, Any], path: ToPath, problems: list[str]) -> list[Any]:
    images, nets = path(given.get("input_image_dir")).rstrip("/"), []
    for kind, net in given.items():
        if kind in _SHARED or is_off(net):
            continue
        place = f"controlnet_map.{kind}"
        if kind not in _NETS:
            problems.append(f"{place}: is not supported; remove it or set its enable to false")
            continue
        net = section(net, _OF_NET, place, problems)
        _refuse(net, {"guess_mode": False, "control_scale_list": [], "control_region_list": []},
                place, problems)  # fmt: skip
        computed = net.get("use_preprocessor", True) and kind not in _AS_THEY_ARE
        if computed and (kind != "controlnet_canny" or net.get("preprocessor")):
            problems.append(
                f"{place}.use_preprocessor: only canny's usual one is supported; give ready "
                "conditions and set it to false"
            )
        nets.append({
            "path": _NETS[kind],
            "pictures": _pictures(f"{images}/{kind}"),
            "canny": {} if computed else None,
            "strength": net.get("controlnet_conditioning_scale", 1.0),
            "start": net.get("control_guidance_start", 0.0),
            "end": net.get("control_guidance_end", 1.0),
        })  # fmt: skip
    return nets


def _ip_adapters(given: Any, travel: Travel, path: ToPath, problems: list[str]) -> list[Any]:
    place = "ip_adapter_map"
    given = section(given, _OF_IMAGES, place, problems)
    _refuse(given, {"resized_to_square": False}, place, problems)
    folder = Path(path(given.get("input_image_dir")))
    by_frame = {
        str(int(file.stem)): str(file)
        for file in sorted(folder.glob("[0-9]*"))
        if file.stem.isdecimal()
    }
    if not by_frame:
        problems.append(f"{place}.input_image_dir: {folder} has no pictures named by their frame")
        return []
    form = next((name for key, name in _FORMS.items() if given.get(key)), "ip-adapter_sd15")
    ratio = given.get("prompt_fixed_ratio", 0.5)
    held = travel({"prompt_map": by_frame, "prompt_fixed_ratio": ratio}, f"{place}.")
    return [{
        "path": f"{_ADAPTERS}/{form}.safetensors",
        "pictures": held,
        "encoder": f"{_ADAPTERS}/image_encoder",
        "scale": given.get("scale", 0.5),
    }]  # fmt: skip


def _regions(
    given: Mapping[str, Any], travel: Travel, path: ToPath, problems: list[str]
) -> list[Any]:
    regions = []
    for name, region in given.items():
        place = f"region_map.{name}"
        if name == "background":
            back = section(region, ("is_init_img", "hint"), place, problems)
            _refuse(back, {"is_init_img": False}, place, problems)
            continue
        if is_off(region):
            continue
        region = section(region, _OF_REGION, place, problems)
        _refuse(region, {"is_init_img": False}, place, problems)
        if region.get("crop_generation_rate"):
            problems.append(f"{place}.crop_generation_rate: is not supported; set it to 0")
        place += ".condition"
        condition = section(region.get("condition"), _OF_CONDITION, place, problems)
        if not is_off(condition.get("ip_adapter_map")):
            problems.append(f"{place}.ip_adapter_map: is not supported; set its enable to false")
        mask = _pictures(path(region.get("mask_dir")))
        regions.append({"prompt": travel(condition, f"{place}."), "mask": mask})
    return regions
