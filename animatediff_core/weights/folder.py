"""The files of diffusers folders, local or on the hub: which of them are used.

Names decide: safetensors before pickles, the wanted variant (fp16, …) before plain files, and
nothing that no part reads (safety checker, ONNX, Flax, single-file checkpoints in the root).
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from .files import printable, read_config_json, refused_json

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
"""What every model has; SDXL has a second text encoder and tokenizer."""
DIFFUSION, CLIP = "diffusion_pytorch_model", "(?:pytorch_)?model"
"""Patterns for how the names of weight files begin: diffusers' models, transformers' CLIP."""
STEMS = {"unet": DIFFUSION, "vae": DIFFUSION, "text_encoder": CLIP, "text_encoder_2": CLIP}
_WEIGHTS = (
    r"(?:\.(?P<a>[\w-]+?))?(?:-\d{5}-of-\d{5})?(?:\.(?P<b>[\w-]+))?"
    r"\.(?P<kind>safetensors|bin)(?:\.index(?:\.(?P<c>[\w-]+))?\.json)?"
)
_MAX_INDEX = 16 << 20


@dataclass(frozen=True)
class Weights:
    """The weight files of one part."""

    files: tuple[str, ...]
    """One file, or an index and its shards."""
    variant: str | None


@dataclass(frozen=True)
class Layout:
    """The files of a folder that are used."""

    weights: Mapping[str, Weights]
    """By part."""
    files: tuple[str, ...]
    """All of them, with their part's folder before."""


def base_layout(names: Collection[str], variant: str | None, source: str) -> Layout:
    """Choose among the files of a base model's folder.

    safetensors come before pickles, and never both. As in diffusers, a part that does not have
    the variant is taken as it is; at least one must have it, and a plain model must be plain.
    """
    for part in PARTS:
        if not any(name.startswith(f"{part}/") for name in names):
            raise CheckpointError(
                f"{source}: is no diffusers folder, it has no {part}/; {_instead(names)}"
            )
    weights = {
        part: choose_weights(_inside(names, part), stem, (variant, None), f"{source}: {part}/")
        for part, stem in STEMS.items()
        if any(name.startswith(f"{part}/") for name in names)
    }
    if variant is not None and all(chosen.variant is None for chosen in weights.values()):
        raise CheckpointError(
            f"{source}: has no weights of variant {printable(variant)}; leave the variant out"
        )
    settings = ("model_index.json", "scheduler/scheduler_config.json")
    files = [name for name in settings if name in names]
    for part, chosen in weights.items():
        files += [f"{part}/config.json", *(f"{part}/{name}" for name in chosen.files)]
    for part in ("tokenizer", "tokenizer_2"):
        files += [f"{part}/{n}" for n in _inside(names, part) if n.endswith((".json", ".txt"))]
    for name in files:
        if name not in names:
            raise CheckpointError(f"{source}: lacks {name}; download it again, or name another")
    return Layout(weights, tuple(files))


def vae_layout(names: Collection[str], source: str) -> Layout:
    """Choose among the files of a VAE's own repository, or of a base model's for its vae/."""
    part = "vae/" if "vae/config.json" in names else ""
    inside = _inside(names, part.rstrip("/"))
    if "config.json" not in inside:
        raise CheckpointError(f"{source}: holds no VAE (no config.json); {_instead(names)}")
    weights = choose_weights(inside, DIFFUSION, (None,), f"{source}: {part}")
    return Layout({"vae": weights}, tuple(part + n for n in ("config.json", *weights.files)))


def adapter_files(names: Collection[str], source: str) -> list[str]:
    """Choose among the files of a MotionAdapter's or control model's repository."""
    inside = _inside(names, "")
    if "config.json" not in inside:
        raise CheckpointError(
            f"{source}: holds no MotionAdapter or control model; {_instead(names)}"
        )
    weights = choose_weights(inside, DIFFUSION, (None, "fp16", "bf16"), f"{source}:")
    return ["config.json", *weights.files]


def encoder_files(names: Collection[str], source: str, folder: str) -> list[str]:
    """Choose among the files of an image encoder, which lies in a folder of its repository."""
    inside = _inside(names, folder)
    if "config.json" not in inside:
        raise CheckpointError(f"{source}: the hub has no image encoder there (no config.json)")
    weights = choose_weights(inside, CLIP, (None,), f"{source}:")
    return ["/".join(filter(None, (folder, n))) for n in ("config.json", *weights.files)]


def weight_files(folder: Path, stem: str = DIFFUSION) -> list[Path]:
    """The files that hold the weights of a folder with one model; half precision comes last."""
    names = _inside(local_names(folder), "")
    chosen = choose_weights(names, stem, (None, "fp16", "bf16"), f"{folder}:")
    return shards(folder, chosen)


def shards(folder: Path, weights: Weights) -> list[Path]:
    """The files that hold tensors; an index may only name shards that lie beside it."""
    for name in weights.files:
        if not name.endswith(".json"):
            continue
        named = read_config_json(folder / name, largest=_MAX_INDEX).get("weight_map")
        if not isinstance(named, dict) or not all(isinstance(n, str) for n in named.values()):
            raise refused_json(folder / name, "has no weight_map from names to files")
        if missing := sorted(set(named.values()) - set(weights.files)):
            raise CheckpointError(
                f"{folder / name}: names {printable(missing[0])}, which is not beside it; download "
                "the folder again"
            )
    return [folder / name for name in weights.files if not name.endswith(".json")]


def _inside(names: Collection[str], part: str) -> list[str]:
    """The files of a part's folder itself, or of the root for an empty name."""
    start = f"{part}/" if part else ""
    inside = [name.removeprefix(start) for name in names if name.startswith(start)]
    return sorted(name for name in inside if "/" not in name)


def _instead(names: Collection[str]) -> str:
    files = [n for n in names if n.endswith((".safetensors", ".ckpt")) and "/" not in n]
    if files:
        return f"name one of its files, for instance …/{printable(sorted(files)[0])}"
    return "name a folder as save_pretrained writes it, or a single checkpoint file"


def choose_weights(
    names: Collection[str], stem: str, variants: Collection[str | None], where: str
) -> Weights:
    """The files of one part in the first variant that is there (None: plain files)."""
    pattern = re.compile(stem + _WEIGHTS, re.ASCII)
    groups: dict[tuple[str | None, bool], list[str]] = {}
    for name in sorted(names):
        if match := pattern.fullmatch(name):
            variant = match["a"] or match["b"] or match["c"]
            groups.setdefault((variant, match["kind"] == "safetensors"), []).append(name)
    for variant in dict.fromkeys(variants):
        for safe in (True, False):
            files = groups.get((variant, safe), [])
            whole = [f for f in files if "-of-" not in f and not f.endswith(".json")]
            if whole or any(f.endswith(".json") for f in files):
                return Weights(tuple(whole[:1] or files), variant)
    if others := sorted({variant for variant, _ in groups if variant is not None}):
        raise CheckpointError(
            f"{where} has only weights of variant {' and '.join(others)}; ask for it with "
            f"--variant {others[0]} (variant: in a prompt file)"
        )
    raise CheckpointError(f"{where} holds no weights, or not all; download the folder again")


def local_names(folder: Path) -> list[str]:
    """The files of a folder and of its parts, as the hub would list them."""
    try:
        found = [path for path in (*folder.glob("*"), *folder.glob("*/*")) if path.is_file()]
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot be read ({error.strerror}); check its permissions"
        ) from error
    return [path.relative_to(folder).as_posix() for path in found]
