"""IP-Adapters (arXiv 2308.06721): attentions to an image beside those to the text.

The forms that read CLIP's view of an image are known (plain, plus, full face; plus face is a plus).
Those of face recognition (FaceID) need another library's networks and are rejected.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models import UNet2DConditionModel
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers.models.clip import CLIPVisionConfig, CLIPVisionModelWithProjection

from ..checkpoints.diffusers_folder import numbers, open_checked
from ..checkpoints.families import family_reading
from ..checkpoints.file_report import ADVICE, NOWHERE, FileReport, require
from ..weights.files import read_config_json, refused_json
from ..weights.folder import CLIP, weight_files
from ..weights.match import check_tensors, shapes_of
from ..weights.weight_file import Shapes, WeightFile, open_weights

Form = Literal["plain", "plus", "full face"]
_PROJECTION, _LAYERS = "image_proj.", "ip_adapter."
_FORMS: dict[str, tuple[str, Form | None]] = {
    "perceiver_resampler.proj_in.weight": ("face ID plus", None),
    "proj.3.weight": ("full face", "full face"),
    "latents": ("plus", "plus"),
    "proj.weight": ("plain", "plain"),
    "proj.0.weight": ("face ID", None),
}
"""The form of a projection that has one of these tensors, the first that it has; None: not used."""
_READ_BY: dict[Form, str] = {
    "plain": "proj.weight", "plus": "proj_in.weight", "full face": "proj.0.weight",
}  # fmt: skip
"""The tensor of each form that reads CLIP."""
_FACE = 512
"""Numbers by which a face recogniser describes a face."""
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
    """`image_proj`, which makes tokens of an image, and `ip_adapter`, keys and values of each
    attention to the text, numbered 1, 3, 5, … in the UNet's order."""


@dataclass(frozen=True, kw_only=True)
class IPAdapterInfo(FileReport):
    """An IP-Adapter."""

    form: Form | None
    """None if it cannot be used."""


def recognise_ip_adapter(file: WeightFile) -> IPAdapterInfo | None:
    """An IP-Adapter of any form, those of face recognition too."""
    shapes = file.shapes
    inner = {n.removeprefix(_PROJECTION) for n in shapes if n.startswith(_PROJECTION)}
    layers = [s for n, s in shapes.items() if n.startswith(_LAYERS) and n.endswith("k_ip.weight")]
    if not inner or not any(name.startswith(_LAYERS) for name in shapes):
        return None
    unknown = ("unknown form", None)
    name, form = next((found for mark, found in _FORMS.items() if mark in inner), unknown)
    if shapes.get(f"{_PROJECTION}proj_in.weight", ())[1:] == (_FACE,):
        name, form = "InstantID", None
    details = {"form": name, "layers": str(len(layers))}
    if form is None:
        details["note"] = (
            "it reads a face recogniser's numbers (FaceID), which is not supported; "
            "use a plain, plus, plus-face or full-face one"
        )
    return IPAdapterInfo(
        path=file.path,
        kind="IP-Adapter",
        family=family_reading(max((s[1] for s in layers if len(s) == 2), default=0)) or "unknown",
        goes_in=NOWHERE if form is None else "ip_adapters",
        details=details,
        file=file,
        form=form,
    )


def read_ip_adapter(path: str | Path) -> IPAdapterWeights:
    """Read an adapter's file; CheckpointError if it is something else or a FaceID form."""
    path = Path(path)
    file = open_weights(path)
    info = require(recognise_ip_adapter(file), "ip_adapters", path)
    assert info.form is not None
    parts = {
        prefix.removesuffix("."): {
            name.removeprefix(prefix): tensor for name, tensor in file.tensors(prefix).items()
        }
        for prefix in (_PROJECTION, _LAYERS)
    }
    return IPAdapterWeights(path, info.form, parts)


def attach_ip_adapters(
    unet: UNet2DConditionModel, adapters: Sequence[tuple[IPAdapterWeights, float]]
) -> Callable[[], None]:
    """Let a UNet read images through adapters, each with its scale; the result takes them out.

    From then on every call of the UNet needs an image embedding for each adapter. Raises
    CheckpointError if one is of another family or not whole. After any error the UNet is as it was.
    """
    for weights, _ in adapters:
        check_ip_adapter(unet, weights)
    processors, hid_dim_type = unet.attn_processors, unet.config.encoder_hid_dim_type
    projection = unet.encoder_hid_proj

    def detach() -> None:
        unet.encoder_hid_proj = projection
        unet.set_attn_processor(dict(processors))
        unet.config.encoder_hid_dim_type = hid_dim_type

    with ExitStack() as undo:
        undo.callback(detach)
        tensors: list[dict[str, Any]] = [dict(weights.parts) for weights, _ in adapters]
        unet._load_ip_adapter_weights(tensors, low_cpu_mem_usage=False)
        undo.pop_all()
    for processor in unet.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [scale for _, scale in adapters]
    unet.encoder_hid_proj.requires_grad_(False).eval()
    return detach


def load_image_encoder(
    folder: str | Path, dtype: torch.dtype | None = torch.float32
) -> CLIPVisionModelWithProjection:
    """CLIP's vision model from its folder; every tensor must match a layer.

    With the dtype None each weight is as its file has it.
    """
    folder = Path(folder)
    config = _vision_config(folder / "config.json")
    encoder: CLIPVisionModelWithProjection = open_checked(
        CLIPVisionModelWithProjection, config, folder, weight_files(folder, CLIP), dtype
    )
    return encoder.requires_grad_(False).eval()


def encoder_width(weights: IPAdapterWeights) -> int:
    """Width of what the adapter reads: the encoder's projection for plain, else its states."""
    return int(weights.parts["image_proj"][_READ_BY[weights.form]].shape[1])


def check_ip_adapter(unet: UNet2DConditionModel, weights: IPAdapterWeights) -> None:
    """The projection is whole, and there are keys and values for each attention to the text."""
    expected: dict[str, tuple[int, ...]] = {}
    layers = [n for n in unet.attn_processors if not n.endswith("attn1.processor")]
    for number, name in enumerate(layers):
        attention = unet.get_submodule(name.removesuffix(".processor"))
        for kind in ("k", "v"):
            shape = tuple(getattr(attention, f"to_{kind}").weight.shape)
            expected[f"{2 * number + 1}.to_{kind}_ip.weight"] = shape
    found = shapes_of(weights.parts["ip_adapter"])
    check_tensors(expected, found, weights.path, "attentions of an IP-Adapter", ADVICE)
    found = shapes_of(weights.parts["image_proj"])
    found = {name.replace(".attn.", ".0."): shape for name, shape in found.items()}
    expected = _projection_shapes(weights.form, found, unet.config.cross_attention_dim)
    check_tensors(expected, found, weights.path, f"projection of a {weights.form} one", ADVICE)


def _projection_shapes(form: Form, found: Shapes, width: int) -> dict[str, tuple[int, ...]]:
    """The tensors that diffusers' projection of a form has, by the released names. What the form
    leaves open (widths of CLIP and of the inner layers) is read from those found."""

    def size(name: str, axis: int) -> int:
        return dict(enumerate(found.get(name, ()))).get(axis, 0)

    if form == "plain":
        reads = size("proj.weight", 1)
        return {"proj.weight": (4 * width, reads), "proj.bias": (4 * width,)} | _norm("norm", width)
    if form == "full face":
        states = size("proj.0.weight", 0)
        hidden = {"proj.0.weight": (states, states), "proj.0.bias": (states,)}
        last = {"proj.2.weight": (width, states), "proj.2.bias": (width,)}
        return hidden | last | _norm("proj.3", width)
    tokens, wide, states = size("latents", 1), size("latents", 2), size("proj_in.weight", 1)
    heads = size("layers.0.0.to_q.weight", 0) // 64 * 64
    shapes: dict[str, tuple[int, ...]] = {
        "latents": (1, tokens, wide),
        "proj_in.weight": (wide, states),
        "proj_in.bias": (wide,),
        "proj_out.weight": (width, wide),
        "proj_out.bias": (width,),
    }
    shapes |= _norm("norm_out", width)
    for layer in (f"layers.{number}" for number in range(4)):
        for norm in ("0.norm1", "0.norm2", "1.0"):
            shapes |= _norm(f"{layer}.{norm}", wide)
        shapes[f"{layer}.0.to_q.weight"] = (heads, wide)
        shapes[f"{layer}.0.to_kv.weight"] = (2 * heads, wide)
        shapes[f"{layer}.0.to_out.weight"] = (wide, heads)
        shapes[f"{layer}.1.1.weight"] = (4 * wide, wide)
        shapes[f"{layer}.1.3.weight"] = (wide, 4 * wide)
    return shapes


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


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
