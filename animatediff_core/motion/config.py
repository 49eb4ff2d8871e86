"""The structure of a motion module, as data: enough to build it and to choose its noise."""

from dataclasses import dataclass, replace
from typing import Literal

Norm = Literal["frame", "clip"]
Betas = tuple[float, float, str]

LINEAR_BETAS: Betas = (0.00085, 0.012, "linear")
"""The noise schedule of every SD1.5 module: linear in t, where SD itself is scaled_linear."""


@dataclass(frozen=True, kw_only=True)
class MotionConfig:
    """Shape and arithmetic of one motion module."""

    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    """Channels of the UNet's blocks, outermost first."""
    layers_per_block: int = 2
    """ResNets in each down block; up blocks have one more. A transformer follows each."""
    max_frames: int = 32
    """Positions that the module was trained with, 1 or more."""
    mid_block: bool = False
    """Whether a temporal transformer follows the mid block's attention."""
    frame_norm: Norm = "frame"
    """Frames that the module's own GroupNorm pools over: each frame alone, or the whole clip."""
    resnet_norm: Norm = "frame"
    """Frames that the GroupNorms of the UNet's ResNets and its `conv_norm_out` pool over."""
    version: str = "v3"
    """A key of VERSIONS, or another name."""
    num_attention_heads: int = 8
    """Heads of each temporal self-attention; they divide every block's channels."""
    norm_num_groups: int = 32
    """Groups of the module's own GroupNorm; they divide every block's channels."""
    betas: Betas = LINEAR_BETAS
    """Noise schedule that it was trained with: start, end, diffusers' schedule name."""
    timestep_spacing: Literal["leading", "trailing"] = "leading"
    """How samplers space their steps; trailing for modules distilled to a few steps."""
    conv_in_channels: int | None = None
    """Channels of the module's own first convolution, if it has one (PIA: 9, the latents, the PIA
    mask and the latents of an image)."""

    def __post_init__(self) -> None:
        for name in ("frame_norm", "resnet_norm"):
            if getattr(self, name) not in ("frame", "clip"):
                raise ValueError(f"{name} must be frame or clip, got {getattr(self, name)!r}")
        for name in ("layers_per_block", "max_frames", "num_attention_heads", "norm_num_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.timestep_spacing not in ("leading", "trailing"):
            raise ValueError(
                f"timestep_spacing must be leading or trailing, got {self.timestep_spacing!r}"
            )
        if self.conv_in_channels is not None and (
            self.conv_in_channels < 3 or self.conv_in_channels % 2 == 0
        ):
            raise ValueError(
                "conv_in_channels must be twice the latent channels and one for the mask, "
                f"got {self.conv_in_channels}"
            )
        for channels in self.block_out_channels:
            for name in ("num_attention_heads", "norm_num_groups"):
                if channels % getattr(self, name):
                    raise ValueError(
                        f"{name} {getattr(self, name)} does not divide {channels} channels"
                    )


_SDXL = (320, 640, 1280)

VERSIONS: dict[str, MotionConfig] = {
    "v1": MotionConfig(version="v1", max_frames=24, resnet_norm="clip"),
    "v2": MotionConfig(version="v2", mid_block=True),
    "v3": MotionConfig(version="v3"),
    "sdxl-beta": MotionConfig(
        version="sdxl-beta",
        block_out_channels=_SDXL,
        frame_norm="clip",
        betas=(0.00085, 0.020, "scaled_linear"),
    ),
    "hotshot-xl": MotionConfig(
        version="hotshot-xl",
        block_out_channels=_SDXL,
        max_frames=24,
        resnet_norm="clip",
        betas=(0.00085, 0.012, "scaled_linear"),
    ),
    "animatelcm": MotionConfig(version="animatelcm", mid_block=True, max_frames=64),
    "lightning": MotionConfig(version="lightning", mid_block=True, timestep_spacing="trailing"),
    "pia": MotionConfig(version="pia", resnet_norm="clip", conv_in_channels=9),
}
"""The released modules at their full size (paper's repository and its descendants)."""


def for_unet(version: str, block_out_channels: tuple[int, ...], **sizes: int) -> MotionConfig:
    """A released version's configuration for a UNet of another size."""
    return replace(VERSIONS[version], block_out_channels=tuple(block_out_channels), **sizes)  # type: ignore[arg-type]
