"""The first noise: unit variance whatever the frames share, and the same from every seed."""

import math
import sys
from types import SimpleNamespace

import pytest
import torch

from animatediff_core.diffusion.noise import draw_noise, seeded, step_noise
from animatediff_core.jobs.sampling import Noise

SHAPE = (1, 4, 6, 40, 40)
UPPER = 2**32


def correlation(one, other) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])


@pytest.mark.parametrize("kind", ["independent", "shared", "mixed", "progressive"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
def test_every_frame_has_unit_variance(kind, alpha):
    noise = draw_noise(3, SHAPE, Noise(type=kind, alpha=alpha))
    assert noise.shape == SHAPE
    assert noise.mean().abs() < 0.05
    for frame in noise.unbind(dim=2):
        assert float(frame.var()) == pytest.approx(1, abs=0.06)


def test_frames_are_as_alike_as_their_type_says():
    frames = {
        kind: draw_noise(5, SHAPE, Noise(type=kind, alpha=1.0)).unbind(dim=2)
        for kind in ("independent", "shared", "mixed", "progressive")
    }
    expected = {
        "independent": (0, 0),
        "shared": (1, 1),
        "mixed": (0.5, 0.5),  # alpha**2 / (1 + alpha**2) for any two frames
        "progressive": (math.sqrt(0.5), math.sqrt(0.5) ** 4),  # fades with the distance
    }
    for kind, (near, far) in expected.items():
        assert correlation(frames[kind][1], frames[kind][2]) == pytest.approx(near, abs=0.04), kind
        assert correlation(frames[kind][1], frames[kind][5]) == pytest.approx(far, abs=0.04), kind


def test_without_a_common_share_frames_are_independent_bit_for_bit():
    plain = draw_noise(7, SHAPE)
    assert torch.equal(plain, torch.randn(SHAPE, generator=torch.Generator().manual_seed(7)))
    for kind in ("mixed", "progressive"):
        assert torch.equal(plain, draw_noise(7, SHAPE, Noise(type=kind, alpha=0.0)))


def test_a_frames_own_seed_decides_its_noise_alone():
    seeds = (11, 12, 2**64 - 1, 11, 5, 6)
    noise = draw_noise(1, SHAPE, Noise(frame_seeds=seeds))
    assert torch.equal(noise[:, :, 0], noise[:, :, 3])
    assert abs(correlation(noise[:, :, 0], noise[:, :, 1])) < 0.04
    other = draw_noise(2, SHAPE, Noise(frame_seeds=(*seeds[:-1], 7)))
    assert torch.equal(noise[:, :, :5], other[:, :, :5])
    assert not torch.equal(noise[:, :, 5], other[:, :, 5])
    first = draw_noise(1, (1, 4, 1, 40, 40), Noise(frame_seeds=(11,)))
    assert torch.equal(noise[:, :, :1], first)  # whatever the clip's length
    mixed = draw_noise(1, SHAPE, Noise(type="mixed", frame_seeds=seeds))
    assert correlation(mixed[:, :, 0], noise[:, :, 0]) == pytest.approx(math.sqrt(0.5), abs=0.04)


def test_noise_does_not_depend_on_threads():
    threads = torch.get_num_threads()
    try:
        drawn = []
        for count in (1, 2):
            torch.set_num_threads(count)
            drawn.append(draw_noise(9, (1, 4, 16, 64, 64), Noise(type="progressive")))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*drawn)


def test_a_seed_of_32_bits_is_torchs_own():
    for seed in (0, 1, 7, UPPER - 1):
        expected = torch.randn(9, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(torch.randn(9, generator=seeded(seed)), expected)


def test_every_one_of_64_bits_changes_the_noise():
    seeds = [0, *(2**bit for bit in range(64)), 2**64 - 1, 3 * UPPER + 5, 5 * UPPER + 3]
    drawn = {seed: draw_noise(seed, (1, 4, 2, 8, 8)) for seed in seeds}
    for number, seed in enumerate(seeds):
        assert seeded(seed).initial_seed() == seed  # what DPM++ SDE's Brownian tree reads
        assert torch.equal(draw_noise(seed, (1, 4, 2, 8, 8)), drawn[seed])
        for other in seeds[:number]:
            assert abs(correlation(drawn[seed], drawn[other])) < 0.25, (seed, other)


def test_a_seed_above_32_bits_is_seeded_by_both_halves():
    """Expected: every second word of `numpy.random.RandomState([5, 1])`, 32 bits each."""
    words = torch.randint(0, UPPER, (3,), generator=seeded(UPPER + 5))
    assert words.tolist() == [2085189291, 3822202474, 3587694693]


def test_dpmpp_sdes_brownian_tree_grows_from_the_whole_seed(monkeypatch):
    trees = []

    def planted(*arguments):
        trees.append(arguments)
        return lambda level, following: torch.full((2,), float(following - level))

    module = SimpleNamespace(BrownianTreeNoiseSampler=planted)  # the real one needs torchsde
    monkeypatch.setitem(sys.modules, "diffusers.schedulers.scheduling_dpmsolver_sde", module)
    scheduler = SimpleNamespace(
        sigmas=torch.tensor([9.0, 0.5, 0.0]), noise_sampler=None, step=lambda answer, step, x: x
    )
    latents = torch.zeros(1, 4, 2, 3, 5, dtype=torch.float64)
    assert step_noise(scheduler, latents, seeded(3 * UPPER + 1)) == {}
    ((model, low, high, seed),) = trees
    assert (model.shape, low, high, seed) == (latents.shape, 0.5, 9.0, 3 * UPPER + 1)
    drawn = scheduler.noise_sampler(torch.tensor(1.0), torch.tensor(3.0))
    assert (drawn.dtype, drawn.tolist()) == (torch.float64, [2, 2])
