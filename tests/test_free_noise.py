"""FreeNoise: one window's noise again and again, every time in another order."""

import torch

from animatediff_core.diffusion.free_noise import free_noise
from animatediff_core.diffusion.noise import draw_noise
from animatediff_core.jobs import Window


def orders(frames: int, window: Window) -> list[int]:
    """For each frame, which frame of the first window has the same noise."""
    noise = free_noise(7, (1, 4, frames, 2, 2), window)
    first = noise[0, :, : window.length].transpose(0, 1).flatten(1)  # f (c h w)
    every = noise[0].transpose(0, 1).flatten(1)
    return [int((first == frame).all(1).nonzero().item()) for frame in every]


def test_every_window_has_all_of_the_noise_once():
    for length, overlap, frames in ((16, 12, 64), (16, 4, 50), (8, 0, 33), (5, 3, 40)):
        found = orders(frames, Window(length=length, overlap=overlap))
        assert found[:length] == list(range(length))
        hop = length - overlap
        for start in range(0, frames - length + 1, hop):
            assert sorted(found[start : start + length]) == list(range(length))


def test_stretches_are_shuffled_by_the_seed():
    found = orders(64, Window(overlap=8))
    stretches = [found[start : start + 8] for start in range(0, 64, 16)]
    assert all(sorted(one) == sorted(stretches[0]) for one in stretches)
    assert len({tuple(one) for one in stretches}) == len(stretches)


def test_a_clip_within_the_window_has_independent_noise():
    shape = (1, 4, 12, 2, 2)
    assert torch.equal(free_noise(3, shape, Window(length=16)), draw_noise(3, shape))
