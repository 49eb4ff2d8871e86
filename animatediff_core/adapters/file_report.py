"""What `inspect` tells of a file."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class FileReport:
    """Kind, family and the place where a file belongs."""

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
    """Sizes, frames, betas, ranks, trigger word, in words."""
    dtype: str | None = None
    """Of its numbers: fp32, fp16, …; None for a folder."""
    parameters: int | None = None
    """How many numbers it holds; None for a folder."""
