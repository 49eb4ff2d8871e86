"""Weight files that are neither base, motion module, LoRA nor embedding: told by a few names."""

import re
from collections.abc import Callable
from pathlib import Path

from ..checkpoints.families import family_of, unet_shape
from ..weights.weight_file import Shapes
from .file_report import FileReport

NOT_YET = "nowhere yet"
CONTROLNETS, SPARSE_CONTROLS, T2I = "controlnets", "sparse_controls", "t2i_adapters"
ENCODER = "an IP-Adapter's encoder"
_READS_TEXT = re.compile(r"attn2[._]to_k[._](weight|lora_down\.weight)$")


def control_kind(path: Path, shapes: Shapes) -> FileReport | None:
    """ControlNet, SparseCtrl, T2I-Adapter or IP-Adapter, which hold parts that look like others."""
    bare = {key.removeprefix("controlnet.").removeprefix("module."): s for key, s in shapes.items()}
    for recognise in (_ip_adapter, _control, _t2i_adapter):
        if (report := recognise(path, bare)) is not None:
            return report
    return None


def model_part(path: Path, shapes: Shapes) -> FileReport | None:
    """UNet, VAE, text or image encoder: a part of a base model alone."""
    recognisers: tuple[Callable[[Path, Shapes], FileReport | None], ...] = (_unet, _vae, _clip)
    for recognise in recognisers:
        if (report := recognise(path, shapes)) is not None:
            return report
    return None


def _ip_adapter(path: Path, shapes: Shapes) -> FileReport | None:
    inner = {key.removeprefix("image_proj.") for key in shapes if key.startswith("image_proj.")}
    layers = {key: s for key, s in shapes.items() if key.startswith("ip_adapter.")}
    if not inner or not layers:
        return None
    forms = (
        ("face ID plus", "perceiver_resampler.proj_in.weight"), ("full face", "proj.3.weight"),
        ("plus", "latents"), ("plain", "proj.weight"), ("face ID", "proj.0.weight"),
    )  # fmt: skip
    form = next((name for name, mark in forms if mark in inner), "unknown form")
    widths = [s[1] for k, s in layers.items() if k.endswith("to_k_ip.weight") and len(s) == 2]
    families = {unet_shape(family)[1]: family for family in ("SD1.5", "SDXL")}
    return FileReport(
        path=path, kind="IP-Adapter", family=families.get(max(widths, default=0), "unknown"),
        goes_in=NOT_YET if "ID" in form else "ip_adapters",
        details={"form": form, "layers": str(len(widths))},
    )  # fmt: skip


def _control(path: Path, shapes: Shapes) -> FileReport | None:
    marks = ("controlnet_", "control_model.", "input_hint_block.", "zero_convs.", "lora_controlnet")
    if not any(key.startswith(marks) for key in shapes):
        return None
    family = _family_by_text(shapes)
    sites = [key for key in shapes if ".motion_modules." in key and key.endswith("norm.weight")]
    if not sites:
        form = "diffusers" if any(k.startswith("controlnet_") for k in shapes) else "original"
        if "lora_controlnet" in shapes:
            form = "control-LoRA"
        goes_in = NOT_YET if form == "control-LoRA" else CONTROLNETS
        return FileReport(path=path, kind="ControlNet", family=family, goes_in=goes_in,
                          details={"layout": form})  # fmt: skip
    lines = "controlnet_cond_embedding.conv_in.weight" in shapes
    frames = [s[1] for key, s in shapes.items() if "pos_e" in key and len(s) == 3]
    details = {"reads": "scribbles" if lines else "RGB pictures (their latents)"}
    if frames:
        details["frames"] = f"{max(frames)} at most"
    return FileReport(
        path=path,
        kind="SparseCtrl",
        family=family,
        version="v3",
        goes_in=SPARSE_CONTROLS,
        details=details,
    )


def _t2i_adapter(path: Path, shapes: Shapes) -> FileReport | None:
    blocks = re.compile(r"^(adapter\.)?body\.\d+\.((resnets|body)\.\d+\.)?block[12]\.weight$")
    if not any(blocks.match(key) for key in shapes):
        return None
    layout = "diffusers" if any(key.startswith("adapter.") for key in shapes) else "original"
    form = "light" if any(".out_conv." in key for key in shapes) else "full"
    details = {"layout": layout, "form": form}
    return FileReport(path=path, kind="T2I-Adapter", goes_in=T2I, details=details)


def _unet(path: Path, shapes: Shapes) -> FileReport | None:
    if "down_blocks.0.resnets.0.conv1.weight" not in shapes or "conv_in.weight" not in shapes:
        return None
    levels: list[int] = []
    while s := shapes.get(f"down_blocks.{len(levels)}.resnets.0.conv1.weight"):
        levels.append(s[0])
    widths = [s[1] for k, s in shapes.items() if _READS_TEXT.search(k) and len(s) == 2]
    return FileReport(
        path=path,
        kind="UNet",
        family=family_of(levels, max(widths, default=0)),
        goes_in="a training file's unet",
        details={"levels": ", ".join(map(str, levels[:16]))},
    )


def _vae(path: Path, shapes: Shapes) -> FileReport | None:
    bare = {key.removeprefix("first_stage_model."): shape for key, shape in shapes.items()}
    layout = None
    if "encoder.down.0.block.0.norm1.weight" in bare:
        layout = "original"
    elif "encoder.down_blocks.0.resnets.0.norm1.weight" in bare:
        layout = "diffusers"
    first = bare.get("decoder.conv_in.weight", ())
    if layout is None or len(first) != 4:
        return None
    details = {"layout": layout, "latents": f"{first[1]} channels"}
    family = "SD1.5, SD2 or SDXL" if first[1] == 4 else "another family"
    return FileReport(path=path, kind="VAE", family=family, goes_in="vae", details=details)


def _clip(path: Path, shapes: Shapes) -> FileReport | None:
    if any(key.removeprefix("visual_projection.").startswith("vision_model.") for key in shapes):
        return FileReport(path=path, kind="image encoder", family="CLIP", goes_in=ENCODER,
                          details={"used by": "IP-Adapter"})  # fmt: skip
    ends = ("token_embedding.weight",)
    tables = [s for key, s in shapes.items() if key.endswith(ends) and len(s) == 2]
    if not tables or not any("layers.0." in key or "resblocks.0." in key for key in shapes):
        return None
    width = tables[0][1]
    families = {768: "SD1.5 or SDXL (its first)", 1024: "SD2", 1280: "SDXL (its second)"}
    return FileReport(
        path=path, kind="text encoder", family=families.get(width, f"width {width}"),
        goes_in="the text_encoder of a base model's folder",
        details={"words": str(tables[0][0]), "width": str(width)},
    )  # fmt: skip


def _family_by_text(shapes: Shapes) -> str:
    widths = {s[1] for k, s in shapes.items() if _READS_TEXT.search(k) and len(s) == 2}
    return next((f for f in ("SD1.5", "SD2", "SDXL") if unet_shape(f)[1] in widths), "unknown")
