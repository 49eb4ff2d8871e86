"""FreeInit: filters and mixing are diffusers' on even sizes, and the first noise they renew."""

import pytest
import torch
from diffusers.pipelines.free_init_utils import FreeInitMixin
from diffusers.schedulers import DDIMScheduler

from animatediff_core.diffusion.free_init import low_pass, renewed_noise, steps_of
from animatediff_core.jobs import FreeInit

SHAPE = (1, 4, 16, 8, 6)


def randn(seed: int, shape=SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "given",
    [
        FreeInit(),
        FreeInit(filter="butterworth", order=2, spatial_stop=0.4, temporal_stop=0.15),
        FreeInit(filter="gaussian", temporal_stop=0.5),
        FreeInit(filter="ideal", spatial_stop=0.2),
    ],
)
def test_filters_and_new_noise_are_those_of_diffusers(given):
    theirs = FreeInitMixin()
    theirs.enable_free_init(
        num_iters=given.iterations, method=given.filter, order=given.order,
        spatial_stop_frequency=given.spatial_stop, temporal_stop_frequency=given.temporal_stop,
    )  # fmt: skip
    theirs.scheduler = DDIMScheduler(beta_schedule="linear")
    first, clip = randn(1), randn(2) * 0.7
    theirs._apply_free_init(first, 0, 4, "cpu", torch.float32, None)
    generator = torch.Generator().manual_seed(3)
    expected, _ = theirs._apply_free_init(clip, 1, 4, "cpu", torch.float32, generator)
    alpha = float(theirs.scheduler.alphas_cumprod[-1])
    kept = low_pass(given, *SHAPE[2:])
    torch.testing.assert_close(
        renewed_noise(clip, first, randn(3), alpha, kept), expected, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("size", [(15, 7, 9), (1, 8, 8), (16, 5, 8)])
def test_low_frequencies_come_from_the_clip_and_high_ones_from_new_noise(size):
    shape = (1, 2, *size)
    kept = low_pass(FreeInit(filter="gaussian"), *size)
    assert kept[0, 0, 0] == 1
    mixed = renewed_noise(randn(1, shape), randn(2, shape), randn(3, shape), 0.04, kept)
    noisy = 0.2 * randn(1, shape) + 0.96**0.5 * randn(2, shape)
    means = (2, 3, 4)  # the lowest frequency of all, whole in the clip's
    torch.testing.assert_close(mixed.mean(means), noisy.mean(means), atol=1e-5, rtol=1e-4)
    everything = renewed_noise(*(randn(s, shape) for s in (1, 2, 3)), 0.04, torch.ones(size))
    torch.testing.assert_close(everything, noisy, atol=1e-5, rtol=1e-4)
    nothing = renewed_noise(*(randn(s, shape) for s in (1, 2, 3)), 0.04, torch.zeros(size))
    torch.testing.assert_close(nothing, randn(3, shape), atol=1e-5, rtol=1e-4)


def test_mixed_noise_of_odd_sizes_is_real():
    """Frequencies that are not symmetric about zero would leave an imaginary part to throw away."""
    shape = (1, 1, 5, 7, 3)
    kept = low_pass(FreeInit(), *shape[2:])
    mixed = torch.fft.ifftn(torch.fft.fftn(randn(4, shape), dim=(-3, -2, -1)) * kept)
    assert mixed.imag.abs().max() < 1e-6


def test_fast_sampling_begins_with_few_steps():
    assert steps_of(FreeInit(iterations=3), 25) == [25, 25, 25]
    assert steps_of(FreeInit(iterations=3, fast=True), 25) == [8, 16, 25]
    assert steps_of(FreeInit(iterations=5, fast=True), 2) == [1, 1, 1, 1, 2]
