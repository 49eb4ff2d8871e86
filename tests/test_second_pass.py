"""The second pass: larger latents, and where the steps begin."""

import pytest
import torch

from animatediff_core.diffusion.upscale import enlarge
from animatediff_core.jobs import Upscale, first_step


@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic"])
def test_latents_are_made_larger_frame_by_frame(method):
    latents = torch.arange(3.0).view(1, 1, 3, 1, 1).expand(1, 4, 3, 4, 6)  # each frame is level
    larger = enlarge(latents, 6, 9, Upscale(method=method))
    assert larger.shape == (1, 4, 3, 6, 9)
    torch.testing.assert_close(larger.mean((0, 1, 3, 4)), torch.arange(3.0))
    assert larger.std((3, 4)).max() < 1e-6


@pytest.mark.parametrize(
    ("strength", "steps", "first"),
    [(1.0, 25, 0), (0.6, 5, 2), (0.5, 20, 10), (0.3, 25, 17), (0.7, 9, 3), (0.01, 25, 24)],
)
def test_a_strength_is_the_share_of_the_steps_that_run_to_the_nearest_step(strength, steps, first):
    assert first_step(strength, steps) == first
