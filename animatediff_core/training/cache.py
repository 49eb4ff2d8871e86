"""Latents on disk: each frame of each video is encoded once.

Whole videos are kept, not windows, so that random starts and strides stay random. A file's name
is a digest of everything that shapes its content: VAE weights, size, the video and its date.

Legend: f frames, c latent channels, h w latent size.
"""

import hashlib
from pathlib import Path

import torch
from diffusers.models import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..media import replacing


class LatentCache:
    """A folder of moments (mean and log-variance, fp16), one file a video."""

    def __init__(self, folder: Path, vae: AutoencoderKL, size: tuple[int, int]) -> None:
        self.folder = folder
        self.key = f"{_digest_of(vae)} {size[0]}x{size[1]}"

    def path(self, video: Path) -> Path:
        """Where the moments of `video` are kept."""
        about = video.stat()
        content = f"{self.key} {video.resolve()} {about.st_mtime_ns} {about.st_size}"
        return self.folder / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.safetensors"

    def has(self, video: Path) -> bool:
        """Whether `video` has been encoded."""
        return self.path(video).exists()

    def write(self, video: Path, moments: Tensor, flipped: Tensor) -> None:
        """moments, flipped: f 2c h w, of the frames and of their mirror images."""
        path = self.path(video)
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            "moments": moments.to(torch.float16).cpu().contiguous(),
            "flipped": flipped.to(torch.float16).cpu().contiguous(),
        }
        with replacing(path) as beside:
            save_file(tensors, beside)

    def read(self, video: Path, *, flip: bool) -> Tensor:
        """f 2c h w, fp32."""
        moments: Tensor = load_file(self.path(video))["flipped" if flip else "moments"].float()
        return moments


def encode_moments(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """pixels: f 3 h w in [-1, 1] -> mean and log-variance, f 2c h/8 w/8, not scaled."""
    pixels = pixels.to(vae.device, vae.dtype, non_blocking=True)
    with torch.no_grad():
        moments = [vae.encode(part).latent_dist.parameters for part in pixels.split(16)]
    return torch.cat(moments).float()


def sample_latents(moments: Tensor, scaling_factor: float, generator: torch.Generator) -> Tensor:
    """Draw from the VAE's posterior and scale: f 2c h w -> f c h w.

    The VAE may leave them channels-last, in which layout torch 2.13 crashes in the backward of a
    GroupNorm whose weights are frozen (on the CPU), so they are laid out plainly here.
    """
    mean, log_variance = moments.contiguous().chunk(2, dim=1)
    noise = torch.randn(mean.shape, generator=generator).to(mean.device, non_blocking=True)
    return (mean + log_variance.clamp(-30, 20).mul(0.5).exp() * noise) * scaling_factor


def _digest_of(vae: AutoencoderKL) -> str:
    digest = hashlib.sha256()
    for name, tensor in vae.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]
