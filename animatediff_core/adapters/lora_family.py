"""Which base models a LoRA was made for: by its shapes, else by what its trainer noted."""

import json
import re
from collections.abc import Mapping

_WIDTHS = {768: "SD1.5", 1024: "SD2", 2048: "SDXL"}
"""Features of the text that the cross-attention reads."""
_READS_TEXT = re.compile(r"attn2[._](processor\.)?to_[kv][._]")
_IN_WIDTH = re.compile(
    r"((lora_down|lora_A|lora\.down|hada_w[12]_b)(\.default)?(\.weight)?|\.diff)$"
)
_KRONECKER = re.compile(r"^(?P<layer>.+)\.lokr_w1(_b)?(\.weight)?$")
_OTHERS = (
    "flux", "sd3", "diffusion-3", "diffusion-v3", "cascade", "auraflow", "pixart", "hunyuan", "wan",
    "lumina", "chroma", "qwen", "cogvideo", "ltx", "mochi",
)  # fmt: skip
"""Words of trainers for families that have no Stable Diffusion UNet."""


def lora_family(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> str | None:
    """SD1.5, SD2, SDXL, another family by its trainer's word, or None where nothing tells."""
    if any(key.startswith(("lora_te2_", "lycoris_te2_", "text_encoder_2.")) for key in shapes):
        return "SDXL"
    widths = set()
    for key, shape in shapes.items():
        if not _READS_TEXT.search(key) or len(shape) < 2:
            continue
        if _IN_WIDTH.search(key):
            widths.add(shape[1])
        elif (match := _KRONECKER.match(key)) is not None:
            ends = (f"{match['layer']}.{end}" for end in ("lokr_w2", "lokr_w2_b"))
            large = [shapes[end][1] for end in ends if len(shapes.get(end, ())) > 1]
            widths.add(shape[1] * max(large, default=0))
    if found := {_WIDTHS[width] for width in widths if width in _WIDTHS}:
        return sorted(found)[-1]
    return None if widths else _noted(metadata)


def _noted(metadata: Mapping[str, str]) -> str | None:
    """The family in the words of kohya's trainer, or of the model specification."""
    said = metadata.get("ss_base_model_version") or metadata.get("modelspec.architecture") or ""
    text = said.lower().replace("_", "-")
    for marks, family in ((("sdxl", "xl-v1"), "SDXL"), (("sd-v2", "diffusion-v2"), "SD2"),
                          (("sd-v1", "diffusion-v1"), "SD1.5")):  # fmt: skip
        if any(mark in text for mark in marks):
            return family
    if any(word in text for word in _OTHERS):
        return json.dumps(said[:40]).strip('"')
    return None
