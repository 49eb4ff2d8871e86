"""The files of diffusers folders, local or on the hub: which of them are used.

Names decide: safetensors before pickles, the wanted variant (fp16, …) before plain files, and
nothing that no part reads (safety checker, ONNX, Flax, single-file checkpoints in the root).
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from .files import printable

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
"""What every model has; SDXL has a second text encoder and tokenizer."""
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model",
          "text_encoder": "(?:pytorch_)?model", "text_encoder_2": "(?:pytorch_)?model"}  # fmt: skip
_WEIGHTS = (
    r"(?:\.(?P<a>[\w-]+?))?(?:-\d{5}-of-\d{5})?(?:\.(?P<b>[\w-]+))?"
    r"\.(?P<kind>safetensors|bin)(?:\.index(?:\.(?P<c>[\w-]+))?\.json)?"
)


@dataclass(frozen=True)
class Weights:
    """The weight files of one part."""

    files: tuple[str, ...]
    """One file, or an index and its shards."""
    variant: str | None
    safetensors: bool


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
        part: choose_weights(_inside(names, part), STEMS[part], variant, f"{source}: {part}/")
        for part in STEMS
        if any(name.startswith(f"{part}/") for name in names)
    }
    if variant is not None and all(one.variant is None for one in weights.values()):
        raise CheckpointError(
            f"{source}: has no weights of variant {printable(variant)}; leave the variant out"
        )
    files = [name for name in ("model_index.json", "scheduler/scheduler_config.json")
             if name in names]  # fmt: skip
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
    inside = _inside(names, "vae") if part else [name for name in names if "/" not in name]
    if "config.json" not in inside:
        raise CheckpointError(f"{source}: holds no VAE (no config.json); {_instead(names)}")
    weights = choose_weights(inside, STEMS["vae"], None, f"{source}: {part}")
    files = tuple(part + name for name in ("config.json", *weights.files))
    return Layout({"vae": weights}, files)


def adapter_layout(names: Collection[str], source: str) -> Layout:
    """Choose among the files of a MotionAdapter's repository."""
    inside = [name for name in names if "/" not in name]
    if "config.json" not in inside:
        raise CheckpointError(f"{source}: holds no MotionAdapter; {_instead(names)}")
    try:
        weights = choose_weights(inside, STEMS["unet"], None, f"{source}:")
    except CheckpointError:
        weights = choose_weights(inside, STEMS["unet"], "fp16", f"{source}:")
    return Layout({"motion_adapter": weights}, ("config.json", *weights.files))


def _inside(names: Collection[str], part: str) -> list[str]:
    inside = [name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")]
    return sorted(name for name in inside if "/" not in name)


def _instead(names: Collection[str]) -> str:
    files = [n for n in names if n.endswith((".safetensors", ".ckpt")) and "/" not in n]
    if files:
        return f"name one of its files, for instance …/{printable(sorted(files)[0])}"
    return "name a folder as save_pretrained writes it, or a single checkpoint file"


def choose_weights(names: Collection[str], stem: str, variant: str | None, where: str) -> Weights:
    """The files of one part: `stem` is a pattern for how their names begin."""
    pattern = re.compile(stem + _WEIGHTS, re.ASCII)
    kinds: dict[tuple[str | None, bool], list[str]] = {}
    for name in sorted(names):
        if match := pattern.fullmatch(name):
            its = match["a"] or match["b"] or match["c"]
            kinds.setdefault((its, match["kind"] == "safetensors"), []).append(name)
    for wanted in dict.fromkeys((variant, None)):
        for safe in (True, False):
            files = kinds.get((wanted, safe), [])
            whole = [f for f in files if "-of-" not in f and not f.endswith(".json")]
            if whole or any(f.endswith(".json") for f in files):
                return Weights(tuple(whole[:1] or files), wanted, safe)
    there = sorted({its for its, _ in kinds if its is not None})
    if there:
        raise CheckpointError(
            f"{where} has only weights of variant {' and '.join(there)}; ask for it with "
            f"--variant {there[0]} (variant: in a prompt file)"
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
