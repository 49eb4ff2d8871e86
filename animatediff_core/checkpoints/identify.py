"""What is this file? Told from names and shapes alone, so it costs no memory."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import CheckpointError
from .base import family_of
from .embeddings import read_embedding
from .files import read_metadata, read_shapes
from .motion_modules import official_keys, read_config, weights_in

_DOWN = re.compile(r"lora_down|lora_A|lora\.down|lora_linear_layer\.down|hada_w1_b")
_LYCORIS = re.compile(r"lokr_w1|hada_w1|\.diff$")
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class FileReport:
    """What `inspect` tells of a file."""

    path: Path
    kind: str
    """base model, motion module, LoRA, MotionLoRA, domain adapter, embedding, VAE, …, unknown."""
    family: str = "unknown"
    """SD1.5, SD2, SDXL, or the levels of another UNet."""
    version: str | None = None
    """Of a motion module."""
    goes_in: str
    """The key of a prompt file where it belongs."""
    details: dict[str, str] = field(default_factory=dict)
    """Sizes, frames, betas, ranks, in words."""


def identify(path: str | Path) -> FileReport:
    """Recognise a weight file or folder; CheckpointError where it is not one at all."""
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    shapes = read_shapes(path)
    if official_keys(shapes):  # type: ignore[arg-type]
        return _motion(path, shapes, read_metadata(path), None)
    names = " ".join(shapes)
    if any(word in names for word in ("lora", "hada_w1", "lokr_w")):
        return _lora(path, shapes)
    if any(key.startswith("model.diffusion_model.") for key in shapes):
        return _single_file(path, shapes)
    if "down_blocks.0.resnets.0.conv1.weight" in shapes and "conv_in.weight" in shapes:
        return _unet(path, shapes)
    if any(key.startswith(("encoder.down", "first_stage_model.encoder.down")) for key in shapes):
        return FileReport(path=path, kind="VAE", goes_in="vae")
    if any(key.startswith("image_proj.") for key in shapes) or "ip_adapter" in names:
        return FileReport(path=path, kind="IP-Adapter", goes_in="nowhere yet")
    if any(key.startswith(("controlnet_", "control_model.")) for key in shapes):
        return FileReport(path=path, kind="ControlNet", goes_in="nowhere yet")
    return _embedding(path, shapes)


def _motion(
    path: Path, shapes: Shapes, metadata: Mapping[str, str], settings: Mapping[str, object] | None
) -> FileReport:
    tensors = official_keys(shapes)  # type: ignore[arg-type]
    if any("lora" in key for key in shapes):
        return _lora(path, shapes)
    try:
        config = read_config(tensors, metadata, version=None, settings=settings, path=path)
    except CheckpointError as error:
        if "positions" not in str(error):
            raise
        return FileReport(
            path=path, kind="motion module", goes_in="motion", details={"note": str(error)}
        )
    start, end, schedule = config.betas
    return FileReport(
        path=path,
        kind="motion module",
        family=family_of(config.block_out_channels, _text_width(config.block_out_channels)),
        version=config.version,
        goes_in="motion",
        details={
            "levels": ", ".join(map(str, config.block_out_channels)),
            "frames": f"{config.max_frames} at most",
            "mid block": "yes" if config.mid_block else "no",
            "motion norm": f"over each {config.frame_norm}",
            "ResNet norm": f"over each {config.resnet_norm}",
            "betas": f"{schedule} {start} to {end}",
        },
    )


def _text_width(levels: tuple[int, ...]) -> int:
    return 2048 if levels == (320, 640, 1280) else 768


def _lora(path: Path, shapes: Shapes) -> FileReport:
    downs = [k for k in shapes if _DOWN.search(k)]
    ranks = {shapes[k][0] for k in downs}
    layers = len(downs) or len({k.rsplit(".", 1)[0] for k in shapes if _LYCORIS.search(k)})
    details = {"layers": str(layers)}
    forms = {"LoHa": "hada_w1", "LoKr": "lokr_w", "LoCon": "lora_mid"}
    if found := [form for form, mark in forms.items() if any(mark in k for k in shapes)]:
        details["form"] = ", ".join(found)
    if ranks:
        details["rank"] = ", ".join(map(str, sorted(ranks)))
    if any("motion_modules." in key for key in shapes):
        return FileReport(
            path=path, kind="MotionLoRA", family="SD1.5", goes_in="motion_loras", details=details
        )
    adapter = all(".processor." in k for k in shapes if "lora" in k) and ranks == {128}
    kind = "domain adapter" if adapter else "LoRA"
    widths = {s[1] for k, s in shapes.items() if "attn2" in k and "to_k" in k and len(s) > 1}
    family = {768: "SD1.5", 1024: "SD2", 2048: "SDXL"}.get(max(widths, default=0), "unknown")
    return FileReport(path=path, kind=kind, family=family, goes_in="loras", details=details)


def _single_file(path: Path, shapes: Shapes) -> FileReport:
    keys = [s for k, s in shapes.items() if k.endswith("attn2.to_k.weight")]
    width = max((s[1] for s in keys), default=0)
    family = {768: "SD1.5", 1024: "SD2", 2048: "SDXL"}.get(width, "unknown")
    details = {"layout": "single file"}
    details["VAE"] = "inside" if any(k.startswith("first_stage_model.") for k in shapes) else "none"
    return FileReport(path=path, kind="base model", family=family, goes_in="base", details=details)


def _unet(path: Path, shapes: Shapes) -> FileReport:
    levels: list[int] = []
    while (s := shapes.get(f"down_blocks.{len(levels)}.resnets.0.conv1.weight")) is not None:
        levels.append(s[0])
    widths = [s[1] for k, s in shapes.items() if k.endswith("attn2.to_k.weight")]
    return FileReport(
        path=path,
        kind="UNet",
        family=family_of(levels, max(widths, default=0)),
        goes_in="a training file's unet",
        details={"levels": ", ".join(map(str, levels))},
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
    config = path / "unet" / "config.json"
    if config.is_file():
        given = json.loads(config.read_text("utf-8"))
        details = {"layout": "diffusers folder"}
        if (path / "motion_module.safetensors").is_file():
            details["motion module"] = "inside, used where --motion names no other"
        return FileReport(
            path=path,
            kind="base model",
            family=family_of(given["block_out_channels"], given["cross_attention_dim"]),
            goes_in="base",
            details=details,
        )
    file, settings = weights_in(path)
    return _motion(path, read_shapes(file), read_metadata(file), settings)
