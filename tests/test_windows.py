"""Windows: every frame covered in every step, weights that sum to 1, and what denoising makes."""

import random
from dataclasses import fields

import pytest
import torch
from conftest import new_motion, new_unet

from animatediff_core import denoise, inflate, make_scheduler
from animatediff_core.diffusion.conditioning import Conditioning
from animatediff_core.diffusion.denoise import denoise_steps
from animatediff_core.diffusion.guidance import Guidance
from animatediff_core.diffusion.noise import draw_noise
from animatediff_core.diffusion.windows import (
    context_windows,
    is_divided,
    max_stride,
    window_frames,
)
from animatediff_core.jobs import Window
from animatediff_core.motion import Conditions, Positions

SCHEDULES = ("standard_static", "standard_uniform", "looped_uniform")
FUSES = ("flat", "pyramid", "overlap_linear")


def settings(count: int = 400):
    """Many windows and clips that go with them."""
    draw = random.Random(0)
    for index in range(count):
        length = draw.randint(2, 32)
        schedule = SCHEDULES[index % 3]
        given = {"length": length, "overlap": draw.randrange(length), "schedule": schedule,
                 "fuse": draw.choice(FUSES)}  # fmt: skip
        frames = draw.randint(2 if schedule == "looped_uniform" else length + 1, 150)
        most = max_stride(Window(**given), frames)
        if schedule != "standard_static":
            given["stride"] = draw.randint(1, most)
        yield Window(**given), frames


def test_windows_cover_every_frame_in_every_step_and_never_one_twice():
    for window, frames in settings():
        for step in (0, 1, 2, 3, 7, 24):
            places = window_frames(window, frames, step)
            length = min(window.length, frames)
            assert all(len(place) == length == len(set(place)) for place in places), window
            assert set().union(*places) == set(range(frames)), (window, frames, step)


def test_weights_are_positive_and_sum_to_one_in_every_frame():
    for window, frames in settings(200):
        total = torch.zeros(frames)
        for part in context_windows(window, frames, 5):
            assert (part.weights > 0).all()
            total[part.frames] += part.weights
        torch.testing.assert_close(total, torch.ones(frames), msg=str((window, frames)))


def test_neighbours_share_the_overlap_and_standard_windows_never_wrap():
    for window, frames in settings():
        places = window_frames(window, frames, 6)
        near = [p for p in places if (p[1] - p[0]) % frames == 1] if frames > 2 else places
        for one, after in zip(near, near[1:], strict=False):
            assert len({*one} & {*after}) >= min(window.overlap, len(one)), (window, frames)
        if window.schedule != "looped_uniform":
            assert all(place == sorted(place) for place in places)


def test_stride_spreads_windows_over_scales():
    window = Window(length=4, overlap=1, stride=3, schedule="looped_uniform")
    apart = {(p[1] - p[0]) % 16 for p in window_frames(window, 16, 3)}
    assert apart == {1, 2, 4}
    assert max_stride(window, 16) == 3
    assert max_stride(window, 12) == 2  # 4 frames 4 apart span 13


def test_static_windows_stay_and_uniform_ones_move_with_the_step():
    fixed = Window(schedule="standard_static")
    static = window_frames(fixed, 48, 0)
    assert [place[0] for place in static] == [0, 12, 24, 32]
    assert window_frames(fixed, 48, 9) == static
    uniform = Window()
    assert [[p[0] for p in window_frames(uniform, 48, step)] for step in range(3)] == [
        [0, 12, 24, 32], [0, 6, 18, 30, 32], [0, 3, 15, 27, 32],
    ]  # fmt: skip
    looped = Window(schedule="looped_uniform")
    assert [[p[0] for p in window_frames(looped, 48, step)] for step in range(3)] == [
        [0, 12, 24, 36], [24, 36, 0, 12], [12, 24, 36, 0],
    ]  # fmt: skip
    assert window_frames(looped, 48, 0)[-1] == [*range(36, 48), *range(4)]


def first_frames(window: Window, frames: int, step: int) -> list[tuple[int, int]]:
    """First frame of each window, and the distance of its frames."""
    return [(p[0], (p[1] - p[0]) % frames) for p in window_frames(window, frames, step)]


def apart(distance: int, *starts: int) -> list[tuple[int, int]]:
    return [(start, distance) for start in starts]


def test_windows_of_every_scale_hop_by_their_own_length_and_shift_with_the_step():
    standard = Window(length=4, overlap=1, stride=3)
    assert [first_frames(standard, 16, step) for step in range(3)] == [
        [*apart(1, 0, 3, 6, 9, 12), *apart(2, 0, 7, 9), *apart(4, 0, 3)],
        [*apart(1, 0, 1, 4, 7, 10, 12), *apart(2, 1, 3, 9), *apart(4, 2, 3)],
        [*apart(1, 0, 3, 6, 9, 12), *apart(2, 0, 1, 8, 9), *apart(4, 1, 3)],
    ]
    looped = Window(length=4, overlap=1, stride=3, schedule="looped_uniform")
    assert [first_frames(looped, 16, step) for step in range(2)] == [
        [*apart(1, 0, 3, 6, 9, 12, 15), *apart(2, 0, 7, 14), *apart(4, 0, 15)],
        [*apart(1, 8, 11, 14, 1, 4, 7), *apart(2, 9, 0, 7), *apart(4, 10, 9)],
    ]


def test_fuse_weights():
    def shares(fuse: str, frames: int = 6, overlap: int = 2) -> list[list[float]]:
        window = Window(length=4, overlap=overlap, fuse=fuse)
        return [part.weights.tolist() for part in context_windows(window, frames, 0)]

    assert shares("flat") == [[1, 1, 0.5, 0.5], [0.5, 0.5, 1, 1]]
    first, second = shares("pyramid")  # 1 2 2 1 and 1 2 2 1
    assert first == pytest.approx([1, 1, 2 / 3, 1 / 3])
    assert second == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert shares("overlap_linear")[0] == pytest.approx([1, 1, 2 / 3, 1 / 3])
    # the last windows share more frames than asked for: 1 1 1 1/2 and 1/2 1 1 1
    assert shares("overlap_linear", overlap=1)[0] == pytest.approx([1, 1, 2 / 3, 1 / 3])
    first, second = shares("overlap_linear", frames=5, overlap=1)
    assert first == pytest.approx([1, 2 / 3, 1 / 2, 1 / 3])
    assert second == pytest.approx([1 / 3, 1 / 2, 2 / 3, 1])


def test_what_fits_is_not_divided_unless_it_must_loop():
    assert not is_divided(None, 99)
    assert not is_divided(Window(length=16), 16)
    assert is_divided(Window(length=16), 17)
    assert is_divided(Window(length=16, schedule="looped_uniform"), 16)


@pytest.fixture(scope="module")
def animated():
    return inflate(new_unet(), new_motion(max_frames=8))


def sampled(animated, frames: int, **given):
    noise = draw_noise(1, (1, 4, frames, 8, 6))
    torch.manual_seed(2)
    text = given.pop("text", torch.randn(1, 5, 16))
    scheduler = make_scheduler(given.pop("scheduler", "ddim"), animated.motion.config)
    return denoise(animated, scheduler, noise, text, torch.zeros(1, 5, 16), **given)


@pytest.mark.parametrize("schedule", SCHEDULES[:2])
def test_a_window_as_long_as_the_clip_equals_no_window_bit_for_bit(animated, schedule):
    window = Window(length=8, schedule=schedule)
    whole = sampled(animated, 8, steps=2)
    assert torch.equal(sampled(animated, 8, steps=2, windows=window), whole)


@pytest.mark.parametrize("fuse", FUSES)
def test_frames_of_a_model_without_motion_do_not_feel_the_windows(fuse):
    animated = inflate(new_unet(), new_motion(max_frames=16))
    still = Conditions(motion_strength=0)
    window = Window(length=4, overlap=1, stride=2, schedule="standard_uniform", fuse=fuse)
    divided = sampled(animated, 11, steps=2, windows=window, conditions=still)
    whole = sampled(animated, 11, steps=2, conditions=still)
    torch.testing.assert_close(divided, whole, atol=2e-5, rtol=1e-4)


def test_longer_than_the_module_and_each_window_reads_its_own_text(animated):
    text = torch.randn(1, 20, 5, 16, generator=torch.Generator().manual_seed(3))
    asked = []

    def lazily(frames):
        asked.append(len(frames))
        return text[:, frames]

    window = Window(length=8, overlap=2, schedule="standard_uniform")
    full = sampled(animated, 20, steps=2, windows=window, text=text)
    assert full.shape == (1, 4, 20, 8, 6)
    assert torch.equal(sampled(animated, 20, steps=2, windows=window, text=lazily), full)
    assert set(asked) == {8}


def test_the_loop_takes_the_windows_of_each_step(animated):
    text, seen = torch.randn(1, 5, 16), []

    def noted(frames):
        seen.append(frames.tolist())
        return text.unsqueeze(1).expand(-1, len(frames), -1, -1)

    window = Window(length=8, overlap=2)
    sampled(animated, 14, steps=3, windows=window, text=noted, guidance_scale=1)
    assert seen == [frames for step in range(3) for frames in window_frames(window, 14, step)]
    assert window_frames(window, 14, 0) != window_frames(window, 14, 1)


FOLDED = torch.arange(10.0).view(10, 1, 1, 1)  # b 2, f 5
BY_FRAME = {  # a value with 5 frames, and what frames 4, 0 and 1 of it are
    "pooled_text": (torch.arange(10.0).view(2, 5, 1), [4, 0, 1, 9, 5, 6]),
    "down_residuals": ((FOLDED, 10 + FOLDED), [[4, 0, 1, 9, 5, 6], [14, 10, 11, 19, 15, 16]]),
    "mid_residual": (FOLDED, [4, 0, 1, 9, 5, 6]),
    "adapter_residuals": ((FOLDED,), [[4, 0, 1, 9, 5, 6]]),
    "image_embeddings": ((FOLDED, 20 + FOLDED), [[4, 0, 1, 9, 5, 6], [24, 20, 21, 29, 25, 26]]),
    "image_masks": (
        (torch.arange(10.0).view(5, 1, 2), torch.arange(5.0).view(5, 1, 1)),
        [[8, 9, 0, 1, 2, 3], [4, 0, 1]],
    ),
    "lora_weights": ((torch.arange(5.0), 2 * torch.arange(5.0)), [[4, 0, 1], [8, 0, 2]]),
    "image_latents": (torch.arange(10.0).view(2, 1, 5, 1, 1), [4, 0, 1, 9, 5, 6]),
    "motion_frames": (torch.arange(5.0), [4, 0, 1]),
}
WHOLE = {
    "size_ids": torch.arange(12.0).view(2, 6),
    "motion_strength": 0.25,
    "guidance_scale": 2.5,
    "motion_blocks": {"mid_block": 0.5},
    "motion_positions": Positions(stretch=0.5),
}


@pytest.mark.parametrize("name", [field.name for field in fields(Conditions)])
def test_conditions_with_a_frame_axis_are_cut_to_the_window(name):
    frames = torch.tensor([4, 0, 1])
    if name in WHOLE:
        assert getattr(Conditions(**WHOLE).at(frames, 5), name) is WHOLE[name]
        return
    value, expected = BY_FRAME[name]  # a new field belongs in one of the two tables
    cut = getattr(Conditions(**{name: value}).at(frames, 5), name)
    if isinstance(cut, tuple):
        assert [one.flatten().tolist() for one in cut] == expected
        assert all(one.ndim == whole.ndim for one, whole in zip(cut, value, strict=True))
    else:
        assert cut.flatten().tolist() == expected
        assert cut.ndim == value.ndim


def test_pooled_text_of_all_frames_is_not_cut():
    pooled = torch.ones(2, 3)
    assert Conditions(pooled_text=pooled).at(torch.tensor([4, 0, 1]), 5).pooled_text is pooled


def test_progress_counts_steps_and_windows(animated):
    scheduler = make_scheduler("ddim", animated.motion.config)
    text = torch.zeros(1, 5, 16)
    guided = Conditioning(text=text, negative_text=text, guidance=Guidance(scale=1))
    noise = draw_noise(1, (1, 4, 12, 8, 6))
    window = Window(length=8, overlap=2, schedule="standard_static")
    seen = [
        (p.step, p.steps, p.window, p.windows)
        for p, _ in denoise_steps(animated, scheduler, noise, guided, steps=2, windows=window)
    ]
    assert seen == [(0, 2, 1, 2), (1, 2, 0, 2), (1, 2, 1, 2), (2, 2, 0, 2)]


@pytest.mark.parametrize(
    "scheduler", ["ddim", "euler", "heun", "dpmpp_2m_karras", "pndm", "unipc", "lcm"]
)
def test_steps_begin_from_a_clip_with_noise_upon_it(animated, scheduler):
    clean = torch.randn(1, 4, 4, 8, 6, generator=torch.Generator().manual_seed(5)) * 0.5
    seen = []
    given = {"scheduler": scheduler, "steps": 8, "guidance_scale": 1, "source": clean}
    late = sampled(animated, 4, start=7, on_step=lambda *at: seen.append(at), **given)
    early = sampled(animated, 4, start=1, **given)
    assert seen[-1][0] == len(seen) <= 2  # pndm takes one more
    assert (late - clean).norm() < 0.6 * (early - clean).norm()


@pytest.mark.parametrize("name", ["ddim", "euler"])
@pytest.mark.parametrize("start", [None, 0, 5])
def test_the_model_first_sees_the_noise_alone_or_the_clip_with_the_noise_of_that_step(
    animated, name, start
):
    clean = torch.randn(1, 4, 4, 8, 6, generator=torch.Generator().manual_seed(5))
    noise, inputs = draw_noise(1, clean.shape), []
    scheduler = make_scheduler(name, animated.motion.config)
    scheduler.set_timesteps(8)
    if start is None:
        first, given = noise * scheduler.init_noise_sigma, {}
    else:
        given = {"start": start, "source": clean}
        first = scheduler.add_noise(clean, noise, scheduler.timesteps[start : start + 1])
    expected = scheduler.scale_model_input(first, scheduler.timesteps[start or 0])
    hook = animated.register_forward_pre_hook(lambda model, call: inputs.append(call[0]))
    sampled(animated, 4, steps=8, scheduler=name, guidance_scale=1, **given)
    hook.remove()
    torch.testing.assert_close(inputs[0], expected)


def test_each_window_has_its_own_frames_conditions(animated):
    window = Window(length=8, overlap=2)
    off = Conditions(motion_frames=torch.zeros(14))
    by_frame = sampled(animated, 14, steps=2, windows=window, conditions=off)
    still = sampled(animated, 14, steps=2, conditions=Conditions(motion_strength=0), windows=window)
    torch.testing.assert_close(by_frame, still, atol=1e-5, rtol=1e-4)
