"""Recognisers of models and their parts: motion modules, checkpoints, UNets, VAEs, CLIP."""

from pathlib import Path

from ..errors import CheckpointError
from ..weights.files import read_config_json
from ..weights.weight_file import WeightFile
from .families import (
    INPUTS,
    NO_TEXT,
    count_temporal,
    families_of,
    families_with,
    family_of,
    family_reading,
    part_config,
    single_file_of,
    text_width,
    unet_layout,
)
from .file_report import NOWHERE, FileReport
from .motion_config import UnclearVersionError, look_alikes
from .motion_files import MOTION_FILE, motion_content
from .motion_module import config_of

_OPEN_CLIP_LAYER = ("layers.0.", "resblocks.0.")


def recognise_motion(file: WeightFile) -> FileReport | None:
    """A motion module, in any dialect."""
    content, path = motion_content(file), file.path
    if not content.shapes:
        return None
    try:
        config = config_of(content, version=None, path=path)
    except UnclearVersionError as error:
        note = str(error).removeprefix(f"{path}: ")
        return FileReport(
            path=path, kind="motion module", goes_in="motion", details={"note": note}, file=file
        )
    start, end, schedule = config.betas
    channels = config.block_out_channels
    families = families_with(channels)
    details = {
        "levels": ", ".join(map(str, channels)),
        **({"base models": " and ".join(families)} if len(families) > 1 else {}),
        "keys": content.dialect,
        "frames": f"{config.max_frames} at most",
        "mid block": "yes" if config.mid_block else "no",
        "motion norm": f"over each {config.frame_norm}",
        "ResNet norm": f"over each {config.resnet_norm}",
        "betas": f"{schedule} {start} to {end}",
    }
    if config.timestep_spacing != "leading":
        details["spacing"] = config.timestep_spacing
    if config.conv_in_channels is not None:
        details["reads"] = f"an image besides ({config.conv_in_channels} channels), see animate"
    if (others := look_alikes(config, content)) is not None:
        details["note"] = others
    return FileReport(
        path=path,
        kind="motion module",
        family=families[0] if families else family_of(channels, 0),
        version=config.version,
        goes_in="motion",
        details=details,
        file=file,
    )


def recognise_checkpoint(file: WeightFile) -> FileReport | None:
    """A base model in one file."""
    if (found := single_file_of(file.shapes)) is None or found.why_not == NO_TEXT:
        return None
    details = {"layout": "single file", "VAE": "inside" if found.vae else "none, name one with vae"}
    if count := count_temporal(file.shapes):
        details["motion module"] = f"{count} tensors inside, not used; name the module with motion"
    if found.averaged:
        details["weights"] = "averaged (EMA)"
    if found.why_not is not None:
        details = {"note": f"a checkpoint {found.why_not}"}
    return FileReport(
        path=file.path,
        kind="base model",
        family=found.family,
        goes_in="base" if found.why_not is None else NOWHERE,
        details=details,
        file=file,
    )


def recognise_base_folder(folder: Path) -> FileReport:
    """A base model's folder in diffusers' form, by its UNet's configuration."""
    path = folder / "unet" / "config.json"
    config = read_config_json(path)
    try:
        family = family_of(config["block_out_channels"], config["cross_attention_dim"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: names no block_out_channels or text width; download it again"
        ) from error
    details = {"layout": "diffusers folder"}
    if (folder / MOTION_FILE).is_file():
        details["motion module"] = "inside, used if --motion names no other"
    return FileReport(
        path=folder, kind="base model", family=family, goes_in="base", details=details
    )


def recognise_unet(file: WeightFile) -> FileReport | None:
    """A UNet alone, in diffusers' names or the first release's."""
    if (layout := unet_layout(file.shapes)) is None:
        return None
    unet = {
        key.removeprefix(layout.prefix): shape
        for key, shape in file.shapes.items()
        if key.startswith(layout.prefix)
    }
    families, width = families_of(unet), text_width(unet)
    family = families[0] if families else family_reading(width) or f"text width {width}"
    details = {"layout": "original" if layout.original else "diffusers"}
    channels = unet[layout.first][1]
    if channels != 4:
        use = INPUTS.get(channels, "another use")
        details["note"] = f"it reads {channels} channels instead of 4, for {use}"
    return FileReport(
        path=file.path,
        kind="UNet",
        family=family,
        goes_in="unet" if channels == 4 else NOWHERE,
        details=details,
        file=file,
    )


def recognise_vae(file: WeightFile) -> FileReport | None:
    """A VAE alone, in diffusers' names or the first release's."""
    bare = {key.removeprefix("first_stage_model."): s for key, s in file.shapes.items()}
    marks = {
        "original": "encoder.down.0.block.0.norm1.weight",
        "diffusers": "encoder.down_blocks.0.resnets.0.norm1.weight",
    }
    layout = next((name for name, mark in marks.items() if mark in bare), None)
    first = bare.get("decoder.conv_in.weight", ())
    if layout is None or len(first) != 4:
        return None
    channels = part_config("SD1.5", "vae")["block_out_channels"][-1]
    return FileReport(
        path=file.path,
        kind="VAE",
        family="SD1.5, SD2 or SDXL" if first[:2] == (channels, 4) else "unknown",
        goes_in="vae",
        details={"layout": layout, "latents": f"{first[1]} channels"},
        file=file,
    )


def recognise_clip(file: WeightFile) -> FileReport | None:
    """An image encoder or text encoder alone."""
    path, names = file.path, file.shapes
    if any(name.removeprefix("visual_projection.").startswith("vision_model.") for name in names):
        return FileReport(
            path=path,
            kind="image encoder",
            family="CLIP",
            goes_in="an IP-Adapter's encoder",
            details={"used by": "IP-Adapter"},
            file=file,
        )
    tables = [s for n, s in names.items() if n.endswith("token_embedding.weight") and len(s) == 2]
    if not tables or not any(mark in name for name in names for mark in _OPEN_CLIP_LAYER):
        return None
    words, width = tables[0]
    families = {768: "SD1.5 or SDXL (its first)", 1024: "SD2", 1280: "SDXL (its second)"}
    return FileReport(
        path=path,
        kind="text encoder",
        family=families.get(width, f"width {width}"),
        goes_in="the text_encoder of a base model's folder",
        details={"tokens": str(words), "width": str(width)},
        file=file,
    )
