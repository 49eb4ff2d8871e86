"""What training reads: windows of frames, pixels in [-1, 1], latents with the VAE's scale."""

import random

import numpy as np
import pytest
import torch
from conftest import TINY
from diffusers.models import AutoencoderKL

from animatediff_core.diffusion import known_region
from animatediff_core.diffusion.decoding import decode as decode_latents
from animatediff_core.errors import TrainingError
from animatediff_core.jobs import Encoding
from animatediff_core.media.clip import write_clip
from animatediff_core.media.image import write_image
from animatediff_core.training.cache import LatentCache, encode_moments, sample_latents
from animatediff_core.training.clips import (
    ClipFile,
    Clips,
    Sample,
    collate,
    list_clips,
    read_pixels,
    read_window,
    window,
)
from animatediff_core.training.config import DataConfig, TrainConfig
from animatediff_core.training.pixels import to_pixels


def noisy_frames(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)


def config(*, flip: bool = False, **changes: object) -> TrainConfig:
    data = DataConfig(
        video_folder="v", sample_size=(16, 24), sample_n_frames=4, sample_stride=1,
        horizontal_flip=flip,
    )  # fmt: skip
    given = {"stage": "motion", "base": "b", "data": data, "caption_dropout": 0.0, **changes}
    return TrainConfig(**given)


def test_black_is_minus_one_white_is_one_and_rows_stay_rows():
    frames = np.zeros((2, 3, 5, 3), np.uint8)
    frames[0, 1, 4] = (255, 127, 128)
    frames[1, 2, 0] = (51, 204, 0)
    pixels = to_pixels(frames, (3, 5))
    assert pixels.shape == (2, 3, 3, 5)
    assert pixels[0, :, 1, 4].tolist() == pytest.approx([1, -1 / 255, 1 / 255], abs=1e-6)
    assert pixels[1, :, 2, 0].tolist() == pytest.approx([-0.6, 0.6, -1], abs=1e-6)
    assert float(pixels.sum()) == pytest.approx(-90 + 2 + (-1 / 255 + 1 + 1 / 255 + 1) + 0.4 + 1.6)


def test_a_larger_video_is_scaled_to_cover_and_cut_to_its_middle():
    frames = np.zeros((1, 8, 24, 3), np.uint8)
    frames[:, :, :8] = (255, 0, 0)
    frames[:, :, 16:] = (0, 0, 255)
    frames[:, 4:, 8:16] = 255  # black above white, between red and blue
    middle = to_pixels(frames, (4, 4))  # scaled by 1/2 to 4 x 12
    assert middle.shape == (1, 3, 4, 4)
    assert middle[0, :, 0, 1:3].max() == pytest.approx(-1, abs=1e-5)
    assert middle[0, :, 3, 1:3].min() == pytest.approx(1, abs=1e-5)
    tall = to_pixels(frames.transpose(0, 2, 1, 3), (12, 2))  # 24 x 8 to 12 x 4
    assert tall.shape == (1, 3, 12, 2)
    assert tall[0, 0, 0, 0] == pytest.approx(1, abs=1e-5)
    assert tall[0, 2, 11, 1] == pytest.approx(1, abs=1e-5)


def test_windows_begin_anywhere_and_keep_their_stride():
    draws = random.Random(1)
    windows = [window(20, 4, 3, draws) for _ in range(200)]
    assert {tuple(np.diff(one)) for one in windows} == {(3, 3, 3)}
    assert {one[0] for one in windows} == set(range(11))  # 10 + 3 * 3 is the last frame
    assert {window(7, 1, 5, draws)[0] for _ in range(200)} == set(range(7))
    assert window(10, 4, 3, draws) == [0, 3, 6, 9]
    assert window(2, 4, 3, draws) == [0, 0, 0, 1]  # spread over what is there
    assert window(5, 3, 4, draws) == [0, 2, 4]


def numbered(folder, count: int) -> list[ClipFile]:
    """Pictures 8 x 8, as grey as their number, captioned by it."""
    files = []
    for number in range(count):
        path = folder / f"{number}.png"
        write_image(np.full((16, 24, 3), 10 * number, np.uint8), path)
        files.append(ClipFile(path, str(number)))
    return files


def test_each_pass_over_the_files_has_an_order_of_its_own(tmp_path):
    clips = Clips(numbered(tmp_path, 6), config(seed=3), None)
    orders = [[clips[6 * turn + i].caption for i in range(6)] for turn in range(4)]
    assert all(sorted(order) == list("012345") for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    other = Clips(clips.files, config(seed=4), None)
    assert [other[i].caption for i in range(6)] != orders[0]
    again = Clips(clips.files, config(seed=3), None)
    assert [again[i].caption for i in (23, 0, 7)] == [orders[3][5], orders[0][0], orders[1][1]]


def test_prior_pictures_have_an_order_of_their_own_too(tmp_path):
    files = numbered(tmp_path, 7)
    clips = Clips(files[:3], config(), None, prior=files[3:])
    captions = [clips[number].caption for number in range(24)]
    for turn in range(4):
        assert sorted(captions[6 * turn : 6 * turn + 6 : 2]) == ["0", "1", "2"]
    for turn in range(3):
        assert sorted(captions[8 * turn + 1 : 8 * turn + 8 : 2]) == ["3", "4", "5", "6"]
    assert captions[1:8:2] != captions[9:16:2]


def test_a_mirrored_sample_is_mirrored_with_its_condition(tmp_path):
    picture = noisy_frames(1, 16, 24)[0]
    write_image(picture, tmp_path / "a.png")
    files = [ClipFile(tmp_path / "a.png", "a")]
    clips = Clips(files, config(flip=True), None, condition=lambda path, pixels: 2 * pixels)
    plain = to_pixels(picture[None], (16, 24))
    flips = 0
    for number in range(40):
        sample = clips[number]
        flipped = torch.equal(sample.frames, plain.flip(3))
        assert flipped or torch.equal(sample.frames, plain)
        assert torch.equal(sample.condition, 2 * sample.frames[0])
        flips += flipped
    assert 8 < flips < 32
    straight = Clips(files, config(), None)
    assert all(torch.equal(straight[number].frames, plain) for number in range(40))


def test_captions_are_dropped_as_often_as_asked(tmp_path):
    files = numbered(tmp_path, 1)
    dropped = Clips(files, config(caption_dropout=0.25), None)
    assert 10 < [dropped[number].caption for number in range(100)].count("") < 45
    never, always = (Clips(files, config(caption_dropout=p), None) for p in (0.0, 1.0))
    assert {never[number].caption for number in range(50)} == {"0"}
    assert {always[number].caption for number in range(50)} == {""}


def test_an_ip_adapters_picture_is_dropped_by_itself(tmp_path):
    files = numbered(tmp_path, 2)

    def dropped(**given: object) -> int:
        made = config(**given)
        clips = Clips(files, made, None, condition=lambda *_: torch.ones(3))
        return sum(not clips[number].condition.any() for number in range(200))

    stage = {"stage": "ip-adapter", "image_encoder": "e"}
    assert 5 < dropped(**stage) < 40  # a tenth
    assert dropped(**stage, image_dropout=0.0) == 0
    assert dropped(**stage, image_dropout=1.0) == 200
    assert dropped(stage="controlnet", condition_folder="c") == 0


def test_a_batch_keeps_the_samples_order():
    samples = [
        Sample(torch.full((2, 3, 4, 5), float(i)), f"c{i}", ((i, "x"),), torch.full((2,), float(i)))
        for i in range(3)
    ]
    batch = collate(samples)
    assert batch.frames[:, 0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert (batch.captions, batch.unreadable) == (
        ["c0", "c1", "c2"],
        ((0, "x"), (1, "x"), (2, "x")),
    )
    assert batch.conditions.tolist() == [[0, 0], [1, 1], [2, 2]]


@pytest.fixture(scope="module")
def vae():
    vae = AutoencoderKL.from_pretrained(TINY / "base" / "vae").eval()
    vae.register_to_config(scaling_factor=0.18215)  # the bundled one's is 1
    return vae


def test_latents_are_drawn_from_the_posterior_and_scaled():
    """torch's randn of seed 7 on the mean 3 with a variance of e**2, times 0.18215."""
    mean, log_variance = torch.full((2, 4, 3, 5), 3.0), torch.full((2, 4, 3, 5), 2.0)
    drawn = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(7))
    latents = sample_latents(
        torch.cat([mean, log_variance], 1), 0.18215, torch.Generator().manual_seed(7)
    )
    torch.testing.assert_close(latents, (3 + 2.718281828 * drawn) * 0.18215)
    certain, wild, wilder = (
        sample_latents(
            torch.cat([mean, torch.full_like(mean, value)], 1),
            0.5,
            torch.Generator().manual_seed(7),
        )
        for value in (-1000.0, 20.0, 1000.0)
    )
    torch.testing.assert_close(certain, torch.full_like(mean, 1.5), atol=1e-5, rtol=0)
    assert torch.equal(wild, wilder)  # as diffusers clamps them


def test_training_and_generation_have_the_same_latents(vae):
    frames = noisy_frames(18, 16, 24)  # more than one chunk of both
    moments = encode_moments(vae, to_pixels(frames, (16, 24)))
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    channels = vae.config.latent_channels
    assert moments.shape == (18, 2 * channels, 16 // factor, 24 // factor)
    mean = moments[:, :channels]
    certain = torch.cat([mean, torch.full_like(mean, -30)], 1)
    trained = sample_latents(certain, vae.config.scaling_factor, torch.Generator())  # f c h w
    known = known_region.encode_images(vae, frames)[0].transpose(0, 1)
    torch.testing.assert_close(trained, known, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        alone = vae.encode(to_pixels(frames[17:], (16, 24))).latent_dist.mean
    torch.testing.assert_close(known[17:], alone * 0.18215, atol=1e-5, rtol=1e-4)
    back = decode_latents(vae, known.transpose(0, 1)[None], chunk=5)
    assert back.shape == frames.shape


def test_cached_moments_are_those_of_the_frames_and_of_their_mirror_images(tmp_path, vae):
    write_clip(noisy_frames(6, 16, 24), tmp_path / "v.gif", Encoding(format="gif"))
    cache = LatentCache(tmp_path / "cache", vae, (16, 24))
    assert not cache.has(tmp_path / "v.gif")
    moments, flipped = torch.randn(2, 6, 8, 4, 6).half().float()
    cache.write(tmp_path / "v.gif", moments, flipped)
    assert cache.has(tmp_path / "v.gif")
    assert torch.equal(cache.read(tmp_path / "v.gif", flip=False), moments)
    assert torch.equal(cache.read(tmp_path / "v.gif", flip=True), flipped)
    assert not LatentCache(tmp_path / "cache", vae, (24, 16)).has(tmp_path / "v.gif")
    for flip, kinds in ((False, {"plain"}), (True, {"plain", "flipped"})):
        clips = Clips([ClipFile(tmp_path / "v.gif", "a")], config(flip=flip), cache)
        sources = {"plain": moments, "flipped": flipped}
        found = {
            (start, kind)
            for number in range(100)
            for start in range(3)
            for kind, source in sources.items()
            if torch.equal(clips[number].frames, source[start : start + 4])
        }
        assert found == {(start, kind) for start in range(3) for kind in kinds}


def test_a_window_of_a_video_is_its_frames(tmp_path):
    frames = noisy_frames(9, 16, 24)
    write_clip(frames, tmp_path / "v.mp4", Encoding(format="mp4", crf=0))
    every = read_window(tmp_path / "v.mp4", 9, 1, (16, 24), random.Random(0))
    assert every.shape == (9, 3, 16, 24)
    one = read_pixels(tmp_path / "v.mp4", (16, 24), lambda video: [4])
    assert torch.equal(one, every[4:5])
    starts = {
        int((every - read_window(tmp_path / "v.mp4", 3, 2, (16, 24), random.Random(seed))[0])
            .flatten(1).norm(dim=1).argmin())
        for seed in range(40)
    }  # fmt: skip
    assert starts == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_captions_and_tables_of_spreadsheets_are_read(tmp_path, encoding):
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    table = tmp_path / "t.csv"
    table.write_text(f"{mark}videoid,name,page_dir\n7,ein Bär,x\n", encoding)
    data = {"video_folder": str(tmp_path), "sample_size": 16}
    (clip,) = list_clips(config(data=DataConfig(**data, csv_path=str(table))))
    assert (clip.path.name, clip.caption) == ("7.mp4", "ein Bär")
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.txt").write_text(f"{mark}ein Bär\n", encoding)
    (clip,) = list_clips(config(data=DataConfig(**data)))
    assert clip.caption == "ein Bär"


@pytest.mark.parametrize(
    "content",
    ["videoid,name,page_dir\n7,ein Bär,x\n".encode("latin-1"),
     b"videoid,name,page_dir\n7," + b"a" * 131_073 + b",x\n"],
)  # fmt: skip
def test_a_table_that_cannot_be_read_is_named(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    data = DataConfig(video_folder=str(tmp_path), csv_path=str(tmp_path / "t.csv"), sample_size=16)
    with pytest.raises(TrainingError, match=r"t.csv: cannot be read \(.*\); save it as UTF-8"):
        list_clips(config(data=data))
