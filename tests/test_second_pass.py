"""The second pass: larger latents, and where the steps begin."""

import pytest
import torch

from animatediff_core.diffusion.denoise import first_step
from animatediff_core.diffusion.upscale import enlarge
from animatediff_core.jobs import Upscale


@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic"])
def test_latents_are_made_larger_frame_by_frame(method):
    latents = torch.arange(3.0).view(1, 1, 3, 1, 1).expand(1, 4, 3, 4, 6)  # each frame is level
    larger = enlarge(latents, 6, 9, Upscale(method=method))
    assert larger.shape == (1, 4, 3, 6, 9)
    torch.testing.assert_close(larger.mean((0, 1, 3, 4)), torch.arange(3.0))
    assert larger.std((3, 4)).max() < 1e-6


def test_strength_is_the_share_of_the_steps_and_at_least_one():
    assert first_step(0.5, 20) == 10
    assert first_step(0.3, 25) == 25 - 8
    assert first_step(1.0, 25) == 0
    assert first_step(0.01, 10) == 9
