"""Reports of weight files: the answer of the recogniser of a file's kind.

`inspect` shows it, planning checks it, and loaders start from it. A recogniser reads names and
shapes alone, so it costs no memory.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ..errors import CheckpointError
from ..weights.files import printable
from ..weights.weight_file import WeightFile

ADVICE = "download it again, or use one of the base model's family"
UNKNOWN = "no known kind"
NOWHERE = "nowhere"
"""`goes_in` of files that are known but cannot be used."""
_WANTED = {
    "base": ("base model", "--base"), "unet": ("UNet", "--unet"), "vae": ("VAE", "--vae"),
    "motion": ("motion module", "--motion"), "loras": ("LoRA for the image model", "--lora"),
    "motion_loras": ("MotionLoRA", "--motion-lora"), "embeddings": ("embedding", "--embedding"),
    "controlnets": ("ControlNet", None), "sparse_controls": ("SparseCtrl encoder", None),
    "t2i_adapters": ("T2I-Adapter", None), "ip_adapters": ("IP-Adapter", None),
}  # fmt: skip
"""By key of a prompt file: the kind that goes into it, and its option of the command line."""
_CLASSES = {
    "ControlNetModel": "ControlNet", "SparseControlNetModel": "SparseCtrl",
    "T2IAdapter": "T2I-Adapter", "AutoencoderKL": "VAE", "UNet2DConditionModel": "UNet",
    "MotionAdapter": "motion module",
}  # fmt: skip
"""By class of a folder's config.json: the kind of its weights."""


@dataclass(frozen=True, kw_only=True)
class FileReport:
    """A file or folder that was recognised. Each kind may add what its loader needs."""

    path: Path
    kind: str
    """base model, motion module, LoRA, MotionLoRA, domain adapter, embedding, VAE, …, unknown."""
    family: str = "unknown"
    """SD1.5, SD2, SDXL, or the block_out_channels of another UNet."""
    version: str | None = None
    """Version of a motion module."""
    goes_in: str
    """The key of a prompt file that takes it; `nowhere` if none does."""
    details: dict[str, str] = field(default_factory=dict)
    """Sizes, frames, betas, ranks, placeholder token, in words."""
    file: WeightFile | None = field(default=None, repr=False)
    """The opened weights; None for a folder of several models."""

    @property
    def dtype(self) -> str | None:
        """The dtype of its numbers: fp32, fp16, …"""
        return None if self.file is None else self.file.dtype

    @property
    def parameters(self) -> int | None:
        """How many numbers it holds."""
        return None if self.file is None else self.file.parameters

    @property
    def named(self) -> str:
        """Its kind with an article."""
        vowel = self.kind.startswith(("A", "E", "I", "e", "i", "up"))
        return f"{'an' if vowel else 'a'} {self.kind}"


Report = TypeVar("Report", bound=FileReport)


def require(report: Report | None, key: str, source: str | Path) -> Report:
    """The report of a file that must go into a key of a prompt file.

    Raises CheckpointError with what the file is instead.
    """
    if report is None:
        raise CheckpointError(
            f"{source}: is no {_WANTED[key][0]}; `animatediff inspect` says what it is"
        )
    if report.kind == UNKNOWN:
        note = report.details["note"]
        raise CheckpointError(f"{source}: is no {_WANTED[key][0]}, which {key} takes: {note}")
    if report.goes_in != key:
        raise wrong_kind(report, key, source)
    return check_class(report)


def check_class(report: Report) -> Report:
    """The report of a folder whose config.json is of the same kind as its weights."""
    config = (report.file and report.file.config) or {}
    name = str(config.get("_class_name", ""))[:60]
    if _CLASSES.get(name, report.kind) != report.kind:
        raise CheckpointError(
            f"{report.path}: its config.json says {name} but its weights are of {report.named}; "
            "download the folder again"
        )
    return report


def of_no_kind(file: WeightFile) -> FileReport:
    """The report of a file that no recogniser knows."""
    names = list(file.shapes)
    first = ", ".join(map(printable, names[:3])) + (", …" if len(names) > 3 else "")
    note = f"its tensors ({first or 'none'}) are of no known kind of weights"
    details = {"tensors": str(len(names)), "note": note}
    return FileReport(path=file.path, kind=UNKNOWN, goes_in=NOWHERE, details=details, file=file)


def wrong_kind(report: FileReport, key: str, source: str | Path) -> CheckpointError:
    """The error for a file of a known kind that does not go into a key of a prompt file."""
    if report.goes_in == NOWHERE:
        note = report.details.get("note", "nothing here uses it")
        return CheckpointError(f"{source}: is {report.named} that cannot be used: {note}")
    option = _WANTED.get(report.goes_in, ("", None))[1]
    own_key = f"{report.goes_in} ({option})" if option else report.goes_in
    return CheckpointError(
        f"{source}: is {report.named}, which goes into {own_key}, not into {key}"
    )


def wrong_family(
    report: FileReport, family: str, source: str | Path, base: str = "the base model"
) -> CheckpointError:
    """The error for a file that was made for another family than the base model's."""
    return CheckpointError(
        f"{source}: is {report.named} for {report.family} but {base} is {family}; "
        "use one of the base model's family"
    )
