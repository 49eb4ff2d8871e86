"""IP-Adapters (arXiv 2308.06721): attentions to a picture beside those to the text.

The forms that read CLIP's view of a picture are known (plain, plus, full face; plus face is a
plus); those of face recognition (FaceID) need another library's networks and are refused.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models import UNet2DConditionModel
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers.models.clip import CLIPVisionConfig, CLIPVisionModelWithProjection

from ..checkpoints.diffusers_folder import numbers, open_checked
from ..checkpoints.families import families_with, unet_shape
from ..errors import CheckpointError
from ..weights.files import read_config_json, refused_json
from ..weights.folder import CLIP, weight_files
from ..weights.weight_file import open_weights

Form = Literal["plain", "plus", "full face"]
_PARTS = ("image_proj", "ip_adapter")
_FORMS: tuple[tuple[str, Form | None], ...] = (
    ("perceiver_resampler.proj_in.weight", None), ("proj.3.weight", "full face"),
    ("latents", "plus"), ("proj.weight", "plain"), ("proj.0.weight", None),
)  # fmt: skip
_VISION_SETTINGS = ("hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers",
                    "num_attention_heads", "num_channels", "image_size", "patch_size",
                    "hidden_act", "layer_norm_eps")  # fmt: skip
_SIZES = ("hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers",
          "num_attention_heads", "image_size", "patch_size")  # fmt: skip


@dataclass(frozen=True)
class IPAdapterWeights:
    """One adapter's tensors."""

    path: Path
    form: Form
    parts: Mapping[str, dict[str, Tensor]]
    """`image_proj`, which makes tokens of a picture, and `ip_adapter`, keys and values of each
    attention to the text, numbered 1, 3, 5, … in the UNet's order."""


def read_ip_adapter(path: str | Path) -> IPAdapterWeights:
    """Read an adapter's file; CheckpointError where it is something else or a FaceID form."""
    path = Path(path)
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in _PARTS}
    for key, tensor in open_weights(path).tensors(*(f"{name}." for name in _PARTS)).items():
        name, _, rest = key.partition(".")
        parts[name][rest] = tensor.float()
    if not all(parts.values()):
        raise CheckpointError(
            f"{path}: is no IP-Adapter (it has no {' and '.join(_PARTS)}); `animatediff inspect` "
            "says what it is"
        )
    form = next((form for mark, form in _FORMS if mark in parts["image_proj"]), None)
    if form is None:
        raise CheckpointError(
            f"{path}: is an IP-Adapter that reads a face recogniser's numbers (FaceID), which is "
            "not supported; use a plain, plus, plus-face or full-face one"
        )
    return IPAdapterWeights(path, form, parts)


def attach_ip_adapters(
    unet: UNet2DConditionModel, adapters: Sequence[tuple[IPAdapterWeights, float]]
) -> Callable[[], None]:
    """Let a UNet read pictures through adapters, each with its scale; the result takes them out.

    From then on every call of the UNet needs an image embedding for each adapter. Raises
    CheckpointError where one is of another family or not whole; then the UNet is as it was.
    """
    for weights, _ in adapters:
        _check_attentions(unet, weights)
    before, said = unet.attn_processors, unet.config.encoder_hid_dim_type
    projection = unet.encoder_hid_proj

    def detach() -> None:
        unet.encoder_hid_proj = projection
        unet.set_attn_processor(dict(before))
        unet.config.encoder_hid_dim_type = said

    try:
        given: list[dict[str, Any]] = [dict(weights.parts) for weights, _ in adapters]
        unet._load_ip_adapter_weights(given, low_cpu_mem_usage=False)
    except (RuntimeError, ValueError, LookupError) as error:
        detach()
        first = str(error).strip().partition("\n")[0][:80]
        names = ", ".join(str(weights.path) for weights, _ in adapters)
        raise CheckpointError(
            f"{names}: cannot be used as an IP-Adapter ({first}); download it again"
        ) from error
    for processor in unet.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [scale for _, scale in adapters]
    unet.encoder_hid_proj.requires_grad_(False).eval()
    return detach


def load_image_encoder(folder: str | Path) -> CLIPVisionModelWithProjection:
    """CLIP's vision model from its folder, in fp32; every tensor must find its place."""
    folder = Path(folder)
    config = _vision_config(folder / "config.json")
    encoder: CLIPVisionModelWithProjection = open_checked(
        CLIPVisionModelWithProjection, config, folder, weight_files(folder, CLIP), torch.float32
    )
    return encoder.requires_grad_(False).eval()


def encoder_width(weights: IPAdapterWeights) -> int:
    """Width of what the adapter reads: the encoder's projection for plain, else its states."""
    inner = weights.parts["image_proj"]
    name = {"plain": "proj.weight", "plus": "proj_in.weight", "full face": "proj.0.weight"}
    return int(inner[name[weights.form]].shape[1])


def _check_attentions(unet: UNet2DConditionModel, weights: IPAdapterWeights) -> None:
    """Keys and values for each of the UNet's attentions to the text, and no others."""
    expected: dict[str, tuple[int, ...]] = {}
    layers = [n for n in unet.attn_processors if not n.endswith("attn1.processor")]
    for number, name in enumerate(layers):
        attention = unet.get_submodule(name.removesuffix(".processor"))
        for kind in ("k", "v"):
            shape = tuple(getattr(attention, f"to_{kind}").weight.shape)
            expected[f"{2 * number + 1}.to_{kind}_ip.weight"] = shape
    given = {key: tuple(t.shape) for key, t in weights.parts["ip_adapter"].items()}
    if given == expected:
        return
    width = max((shape[1] for shape in given.values() if len(shape) == 2), default=0)
    family = next((f for f in ("SD1.5", "SDXL") if unet_shape(f)[1] == width), f"width {width}")
    levels = tuple(unet.config.block_out_channels)
    ours = " or ".join(families_with(levels)) or f"levels {', '.join(map(str, levels))}"
    raise CheckpointError(
        f"{weights.path}: is an IP-Adapter for another base model ({len(given)} tensors for "
        f"{family}, where this one, {ours}, has {len(expected)}); use one of its family"
    )


def _vision_config(path: Path) -> CLIPVisionConfig:
    config = read_config_json(path)
    kind = config.get("model_type", "clip_vision_model")
    if kind not in ("clip_vision_model", "clip"):
        raise refused_json(path, f"is for a {str(kind)[:60]}, not for CLIP's vision model")
    for key in _SIZES:
        if key in config:
            numbers(config, key, path)
    if config.get("num_hidden_layers", 1) > 100:
        raise refused_json(path, "describes more layers than any such model has")
    try:
        return CLIPVisionConfig(**{key: config[key] for key in _VISION_SETTINGS if key in config})
    except (StrictDataclassError, ValueError) as error:
        raise refused_json(path, "has settings that CLIP's vision model does not have") from error
