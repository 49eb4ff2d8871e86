"""What is this file? Told from names and shapes alone, so it costs no memory."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..checkpoints.families import SingleFile, families_with, family_of, single_file_of
from ..checkpoints.motion_config import UnclearVersionError, look_alikes
from ..checkpoints.motion_files import MotionContent, read_motion
from ..checkpoints.motion_module import config_of
from ..checkpoints.motion_names import SITE
from ..errors import CheckpointError
from ..weights.files import read_config_json
from ..weights.weight_file import Shapes, WeightFile, open_weights
from .file_report import FileReport as FileReport
from .kinds import CONTROLNETS, ENCODER, SPARSE_CONTROLS, T2I, control_kind, model_part
from .lora_family import lora_family
from .textual_inversion import read_embedding

_DOWN = re.compile(r"lora_down|lora_A|lora\.down|lora_linear_layer\.down|hada_w1_b")
_LYCORIS = re.compile(r"lokr_w1|hada_w1|\.diff$|\.w_norm$")
_LORA = re.compile(
    r"lora|hada_w1|lokr_w|dora_scale|\.(diff|diff_b|w_norm|b_norm)(\.weight)?$"
)  # not model.diffusion_model
_WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_FOLDERS = {
    "ControlNetModel": ("ControlNet", CONTROLNETS),
    "SparseControlNetModel": ("SparseCtrl", SPARSE_CONTROLS),
    "T2IAdapter": ("T2I-Adapter", T2I), "AutoencoderKL": ("VAE", "vae"),
    "UNet2DConditionModel": ("UNet", "a base model's folder"),
    "CLIPTextModel": ("text encoder", "a base model's folder"),
    "CLIPTextModelWithProjection": ("text encoder", "a base model's folder"),
    "CLIPVisionModelWithProjection": ("image encoder", ENCODER),
}  # fmt: skip


def identify(path: str | Path) -> FileReport:
    """Recognise a weight file or folder; CheckpointError where it is not one at all."""
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    listing = open_weights(path)
    report = _recognised(path, listing)
    return replace(report, dtype=listing.dtype, parameters=listing.parameters)


def _recognised(path: Path, listing: WeightFile) -> FileReport:
    shapes = listing.shapes
    if (control := control_kind(path, shapes)) is not None:
        return control
    is_lora = any(_LORA.search(key) for key in shapes)
    if any("motion_modules." in key or "temporal_attentions." in key for key in shapes):
        if is_lora:
            return _motion_lora(path, shapes)
        content = read_motion(path)
        if content.shapes:
            return _motion(path, content)
    if is_lora:
        return _lora(path, shapes, listing.metadata)
    if (single := single_file_of(shapes)) is not None:
        return _single_file(path, single)
    return model_part(path, shapes) or _embedding(path, shapes)


def _motion(path: Path, content: MotionContent) -> FileReport:
    try:
        config = config_of(content, version=None, path=path)
    except UnclearVersionError as error:
        note = str(error).removeprefix(f"{path}: ")
        return FileReport(path=path, kind="motion module", goes_in="motion", details={"note": note})
    start, end, schedule = config.betas
    levels = config.block_out_channels
    families = families_with(levels)
    details = {
        "levels": ", ".join(map(str, levels)),
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
    goes_in = "motion"
    if config.conv_in_channels is not None:
        details["reads"] = f"a picture besides ({config.conv_in_channels} channels)"
        goes_in = "motion, with a picture in animate"
    if (others := look_alikes(config, content)) is not None:
        details["note"] = others
    return FileReport(
        path=path,
        kind="motion module",
        family=families[0] if families else family_of(levels, 0),
        version=config.version,
        goes_in=goes_in,
        details=details,
    )


def _motion_lora(path: Path, shapes: Shapes) -> FileReport:
    details = _lora_details(shapes)
    plain = [key.removeprefix("module.").removeprefix("unet.") for key in shapes]
    details["mid block"] = "yes" if any(key.startswith("mid_block") for key in plain) else "no"
    numbers = [m[1].rpartition(".")[2] for m in map(SITE.match, plain) if m]
    highest = max((int(n) for n in numbers if n.isdigit() and len(n) < 3), default=3)
    family = "SDXL" if highest == 2 else "SD1.5"
    return FileReport(
        path=path, kind="MotionLoRA", family=family, goes_in="motion_loras", details=details
    )


def _lora_details(shapes: Shapes) -> dict[str, str]:
    downs = [k for k in shapes if _DOWN.search(k)]
    ranks = {shapes[k][0] for k in downs if shapes[k]}
    layers = len(downs) or len({k.rsplit(".", 1)[0] for k in shapes if _LYCORIS.search(k)})
    details = {"layers": str(layers)}
    forms = {"LoHa": "hada_w1", "LoKr": "lokr_w", "LoCon": "lora_mid", "DoRA": "dora_scale",
             "DoRA (PEFT)": "lora_magnitude_vector", "full difference": ".diff"}  # fmt: skip
    if found := [form for form, mark in forms.items() if any(mark in k for k in shapes)]:
        details["form"] = ", ".join(found)
    if ranks:
        details["rank"] = ", ".join(map(str, sorted(ranks)))
    return details


def _lora(path: Path, shapes: Shapes, metadata: Mapping[str, str]) -> FileReport:
    details = _lora_details(shapes)
    adapter = (
        all(".processor." in k for k in shapes if "lora" in k) and details.get("rank") == "128"
    )
    texts = ("lora_te", "lycoris_te", "text_encoder", "text_model", "base_model.model.text_model")
    if any(key.startswith(texts) for key in shapes):
        details["text encoder"] = "yes"
    return FileReport(
        path=path, kind="domain adapter" if adapter else "LoRA",
        family=lora_family(shapes, metadata) or "unknown", goes_in="loras", details=details,
    )  # fmt: skip


def _single_file(path: Path, kind: SingleFile) -> FileReport:
    details = {"layout": "single file", "VAE": "inside" if kind.vae else "none, name one with vae"}
    if kind.averaged:
        details["weights"] = "averaged (EMA)"
    goes_in = "base"
    if kind.why_not is not None:
        goes_in, details = "nowhere", {"note": f"a checkpoint {kind.why_not}"}
    return FileReport(
        path=path, kind="base model", family=kind.family, goes_in=goes_in, details=details
    )


def _embedding(path: Path, shapes: Shapes) -> FileReport:
    if len(shapes) <= 2:
        try:
            word, vectors = read_embedding(path)
        except CheckpointError:
            pass
        else:
            width = vectors[0].shape[1]
            families = {768: "SD1.5", 1024: "SD2"}
            return FileReport(
                path=path,
                kind="embedding",
                family="SDXL" if len(vectors) == 2 else families.get(width, f"width {width}"),
                goes_in="embeddings",
                details={"word": word, "vectors": str(len(vectors[0]))},
            )
    return FileReport(
        path=path, kind="unknown", goes_in="nowhere", details={"tensors": str(len(shapes))}
    )


def _folder(path: Path) -> FileReport:
    if (path / "unet" / "config.json").is_file():
        return _base_folder(path)
    adapter = path / "adapter_model.safetensors"
    if (path / "adapter_config.json").is_file() and adapter.is_file():
        return identify(adapter)
    config = path / "config.json"
    said = read_config_json(config) if config.is_file() else {}
    named = [said.get("_class_name"), *(said.get("architectures") or [])]
    for name in named:
        if isinstance(name, str) and name in _FOLDERS:
            kind, goes_in = _FOLDERS[name]
            return FileReport(path=path, kind=kind, goes_in=goes_in, details={"class": name})
    inner = (path / "motion_adapter" / "config.json", path / "motion_module.safetensors")
    if "MotionAdapter" in named or any(file.is_file() for file in inner):
        return _motion(path, read_motion(path))
    files = sorted(file.name for file in path.iterdir() if file.suffix in _WEIGHTS)
    if files:
        raise CheckpointError(
            f"{path}: is no model's folder but holds {len(files)} weight files ({files[0]}"
            f"{', …' if files[1:] else ''}); name the files, for instance {path}/*{_WEIGHTS[0]}"
        )
    raise CheckpointError(f"{path}: is a folder without a model; name a weight file or its folder")


def _base_folder(path: Path) -> FileReport:
    given = read_config_json(path / "unet" / "config.json")
    details = {"layout": "diffusers folder"}
    if (path / "motion_module.safetensors").is_file():
        details["motion module"] = "inside, used where --motion names no other"
    try:
        family = family_of(given["block_out_channels"], given["cross_attention_dim"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path / 'unet' / 'config.json'}: names no levels or text width; download it again"
        ) from error
    return FileReport(path=path, kind="base model", family=family, goes_in="base", details=details)
