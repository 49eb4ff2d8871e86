"""Latents on disk: each frame of each video is encoded once.

A file holds a whole video, so that windows stay random. Its name is a digest of everything that
determines its content: VAE weights, size, the video and its date.

Legend: f frames, c latent channels, h w latent size.
"""

import hashlib
from pathlib import Path

import torch
from diffusers.models import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..media.atomic import atomic_write


class LatentCache:
    """A folder of moments (mean and log-variance, fp16), one file a video."""

    def __init__(self, folder: Path, vae: AutoencoderKL, size: tuple[int, int]) -> None:
        self.folder = folder
        self.key = f"{_digest_of(vae)} {size[0]}x{size[1]}"

    def path(self, video: Path) -> Path:
        """The file for the moments of `video`."""
        status = video.stat()
        content = f"{self.key} {video.resolve()} {status.st_mtime_ns} {status.st_size}"
        return self.folder / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.safetensors"

    def has(self, video: Path) -> bool:
        """Whether `video` is encoded."""
        return self.path(video).exists()

    def write(self, video: Path, moments: Tensor, flipped: Tensor) -> None:
        """moments, flipped: f 2c h w, of the frames and of their mirror images."""
        path = self.path(video)
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            "moments": moments.to(torch.float16).cpu().contiguous(),
            "flipped": flipped.to(torch.float16).cpu().contiguous(),
        }
        with atomic_write(path) as temporary:
            save_file(tensors, temporary)

    def read(self, video: Path, *, flip: bool) -> Tensor:
        """f 2c h w, fp32."""
        moments: Tensor = load_file(self.path(video))["flipped" if flip else "moments"].float()
        return moments


def encode_moments(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """pixels: f 3 h w in [-1, 1] -> mean and log-variance, f 2c h w, not scaled."""
    pixels = pixels.to(vae.device, vae.dtype, non_blocking=True)
    with torch.no_grad():
        moments = [vae.encode(chunk).latent_dist.parameters for chunk in pixels.split(16)]
    return torch.cat(moments).float()


def sample_latents(moments: Tensor, scaling_factor: float, generator: torch.Generator) -> Tensor:
    """Draw from the VAE's posterior and scale: f 2c h w -> f c h w.

    The result is contiguous: with channels-last latents, torch 2.13 crashes on the CPU in the
    backward of a GroupNorm with frozen weights.
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
