"""Every format, read back by another library than the one that wrote it."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from animatediff_core.errors import MachineError, MediaError
from animatediff_core.jobs import Encoding
from animatediff_core.media.clip import check_encoder, encode, write_clip
from animatediff_core.media.frames import Picked, ping_pong
from animatediff_core.media.interpolate import check_interpolation, interpolated
from animatediff_core.media.max_size import attempts_for, write_within
from animatediff_core.media.palette import Quantizer, make_palette
from animatediff_core.media.settings import MARK, read_settings, sidecar_of

SETTINGS = MARK + "jobs: [{prompt: 'ü = x; # \\'}]\n" * 3000
"""About 100 kB with everything that some container must escape."""
MOVIES = {
    "h264": Encoding(format="mp4", fps=12),
    "h265": Encoding(format="mp4", codec="h265", fps=29.97),
    "av1 mp4": Encoding(format="mp4", codec="av1", fps=7.5),
    "vp9": Encoding(format="webm", fps=24),
    "av1 webm": Encoding(format="webm", codec="av1", fps=23.976),
}


def moving(count: int = 12, width: int = 64, height: int = 48, step: float = 3) -> np.ndarray:
    """A blue disc travels to the right over a smooth background: f h w 3."""
    y, x = np.mgrid[0:height, 0:width]
    ground = np.stack([200 - x, 60 + y, 90 + 0 * x], axis=-1).astype(np.uint8)
    clip = np.repeat(ground[None], count, axis=0)
    for index in range(count):
        clip[index][(y - height / 2) ** 2 + (x - 10 - step * index) ** 2 < 64] = (30, 60, 220)
    return clip


def restless(count: int = 12) -> np.ndarray:
    """The same with a little noise in every frame, as models paint."""
    noise = np.random.default_rng(1).normal(0, 4, (count, 48, 64, 3))
    return (moving(count) + noise).clip(0, 255).round().astype(np.uint8)


def read_movie(path: Path) -> tuple[np.ndarray, list[float], av.VideoCodecContext]:
    """Frames, starts in seconds and codec of a video, by PyAV (the program ffmpeg wrote it)."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
        return pictures, [float(f.pts * f.time_base) for f in frames], stream.codec_context


def read_pictures(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Frames and starts in seconds by Pillow, of which the containers are our own."""
    with Image.open(path) as picture:
        frames, spent = [], [0.0]
        for index in range(picture.n_frames):
            picture.seek(index)
            frames.append(np.asarray(picture.convert("RGB")))
            spent.append(spent[-1] + picture.info["duration"] / 1000)
    return np.stack(frames), np.array(spent)


def error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b).mean())


@pytest.mark.parametrize("name", MOVIES)
def test_movies_keep_frames_timing_colours_and_settings(tmp_path, name):
    encoding, clip = MOVIES[name], moving()
    path = tmp_path / f"c.{encoding.format}"
    write_clip(clip, path, encoding, text=SETTINGS)
    frames, starts, codec = read_movie(path)
    assert frames.shape == clip.shape
    assert np.abs(np.array(starts) - np.arange(12) / encoding.fps).max() < 0.001
    assert error(frames, clip) < 3
    assert np.abs(frames.astype(int) - clip)[:, :8, -8:].mean() < 4  # no shift of flat colours
    assert (codec.pix_fmt, codec.colorspace, codec.color_primaries, codec.color_trc) == (
        "yuv420p", 1, 1, 1,
    )  # fmt: skip
    if encoding.format == "mp4":
        assert path.read_bytes().index(b"moov") < path.read_bytes().index(b"mdat")
    if name == "h265":
        assert codec.codec_tag == "hvc1"
    assert read_settings(path) == SETTINGS
    content = path.read_bytes()
    write_clip(clip, path, encoding, text=SETTINGS)
    assert path.read_bytes() == content


def test_crf_0_is_lossless_with_every_codec(tmp_path):
    planes = []
    for name, given in MOVIES.items():
        path = tmp_path / f"{name}.{given.format}"
        lossless = Encoding(format=given.format, codec=given.codec, crf=0)
        write_clip(moving(4), path, lossless)
        with av.open(str(path)) as container:
            planes.append(np.stack([f.to_ndarray() for f in container.decode(video=0)]))
    assert all(np.array_equal(one, planes[0]) for one in planes[1:])


@pytest.mark.parametrize(
    ("encoding", "colours", "worst"),
    [
        (Encoding(format="gif", fps=29.97), None, 4),
        (Encoding(format="gif", dither="bayer", fps=50), None, 4),
        (Encoding(format="gif", dither="none", fps=7), None, 4),
        (Encoding(format="gif", dither="bayer"), 8, 30),
        (Encoding(format="webp", fps=29.97), None, 0),
        (Encoding(format="webp", quality=80), None, 4),
        (Encoding(format="apng", fps=23.976), None, 0),
        (Encoding(format="apng"), 256, 4),
    ],
)
def test_pictures_keep_frames_timing_and_settings(tmp_path, encoding, colours, worst):
    clip = moving()
    clip[7] = clip[6]  # a frame in which nothing moves stays a frame
    path = tmp_path / f"c.{encoding.format}"
    encode(clip, path, encoding, SETTINGS, colours)
    frames, starts = read_pictures(path)
    assert frames.shape == clip.shape
    assert error(frames, clip) <= worst
    half = {"gif": 0.005, "webp": 0.0005, "apng": 0.0005}[encoding.format]
    assert np.abs(starts - np.arange(13) / encoding.fps).max() <= half + 1e-9
    assert read_settings(path) == SETTINGS
    if encoding.format != "webp":  # PyAV reads no animated WebP
        again, times, _ = read_movie(path)
        assert np.array_equal(again, frames)
        assert np.abs(np.array(times) - np.arange(12) / encoding.fps).max() <= half + 1e-6


@pytest.mark.parametrize("dither", ["floyd_steinberg", "bayer", "none"])
def test_few_colours_stay_exact_in_a_gif(tmp_path, dither):
    clip = np.full((6, 33, 31, 3), (20, 60, 200), np.uint8)
    for index in range(6):
        clip[index, 8:16, index : index + 8] = (220, 40, 30)
    write_clip(clip, tmp_path / "c.gif", Encoding(format="gif", dither=dither))
    assert np.array_equal(read_pictures(tmp_path / "c.gif")[0], clip)


def test_ordered_dithering_does_not_flicker_where_nothing_moves():
    clip = moving()
    quantizer = Quantizer(make_palette(clip, 16), "bayer")
    shown = np.stack([quantizer.indices(frame) for frame in clip])
    still = (clip == clip[0]).all(axis=(0, 3))
    assert still.any()
    assert (shown == shown[0])[:, still].all()
    assert error(make_palette(clip, 16)[shown], clip) < 20


def test_frames_are_a_folder_whole_or_not_at_all(tmp_path):
    clip = moving(3)
    write_clip(clip, tmp_path / "a.b-1", Encoding(format="png"), text=SETTINGS)
    files = sorted((tmp_path / "a.b-1").iterdir())
    assert [file.name for file in files] == ["00000.png", "00001.png", "00002.png"]
    assert all(np.array_equal(Image.open(f), frame) for f, frame in zip(files, clip, strict=True))
    assert read_settings(tmp_path / "a.b-1") == read_settings(files[2]) == SETTINGS
    assert sidecar_of(files[1]) == sidecar_of(tmp_path / "a.b-1") == tmp_path / "a.b-1.yaml"
    broken = Picked(clip, [0, 1, 9])
    with pytest.raises(IndexError):
        write_clip(broken, tmp_path / "b-1", Encoding(format="png"))
    assert [p.name for p in tmp_path.iterdir()] == ["a.b-1"]


def test_foreign_clips_carry_no_settings(tmp_path):
    write_clip(moving(2), tmp_path / "c.gif", Encoding(), text="made with love")
    write_clip(moving(2), tmp_path / "c.mp4", Encoding(format="mp4"))
    (tmp_path / "c.webp").write_bytes(b"RIFF")
    write_clip(moving(1), tmp_path / "c.apng", Encoding(format="apng"), text="0" * 2**21)
    assert read_settings(tmp_path / "c.gif") is None
    assert read_settings(tmp_path / "c.mp4") is None
    for name, told in (
        ("c.webp", "is not a readable image"),
        ("c.apng", "is not a readable image"),
        ("d.gif", "no such clip"),
    ):
        with pytest.raises(MediaError, match=told):
            read_settings(tmp_path / name)


@pytest.mark.parametrize(
    ("encoding", "limit", "lowered"),
    [
        (Encoding(format="gif"), 100_000, set()),
        (Encoding(format="gif"), 40_000, {"colours"}),
        (Encoding(format="gif"), 6_500, {"colours", "width", "height"}),
        (Encoding(format="gif"), 2_000, {"colours", "width", "height", "fps"}),
        (Encoding(format="webp"), 3_300, {"quality"}),
        (Encoding(format="apng"), 30_000, {"colours"}),
        (Encoding(format="mp4"), 5_000, {"crf"}),
        (Encoding(format="webm", codec="av1"), 900, {"crf", "width", "height", "fps"}),
    ],
)
def test_max_size_is_kept_by_lowering_quality_then_size_then_rate(
    tmp_path, encoding, limit, lowered
):
    path, clip = tmp_path / f"c.{encoding.format}", restless()
    done = write_within(clip, path, encoding, limit, lambda done: f"{MARK}jobs: {done}")
    assert path.stat().st_size <= limit
    assert set(done) == lowered
    assert read_settings(path) == f"{MARK}jobs: {done}"
    with Image.open(path) if encoding.format in ("gif", "webp", "apng") else av.open(path) as file:
        shown = file if isinstance(file, Image.Image) else file.streams.video[0].codec_context
        assert (shown.width, shown.height) == (done.get("width", 64), done.get("height", 48))
    if encoding.format == "gif":
        frames, starts = read_pictures(path)
        assert len(frames) == -(-12 * done.get("fps", 8) // 8)
        assert abs(starts[1] - 1 / done.get("fps", 8)) <= 0.005 + 1e-9


def test_the_first_attempt_that_is_small_enough_is_taken(tmp_path):
    clip, encoding = restless()[:4], Encoding()
    attempts, sizes = attempts_for(encoding, clip), []
    for attempt in attempts:
        view = attempt.view(clip)
        encode(view, tmp_path / "a.gif", attempt.encoding, "", attempt.colours)
        sizes.append((tmp_path / "a.gif").stat().st_size)
    assert sizes[:-3] == sorted(sizes[:-3], reverse=True)
    for size in sizes[:-3]:  # the last ones show fewer frames of four
        write_within(clip, tmp_path / "c.gif", encoding, size, lambda done: "")
        assert (tmp_path / "c.gif").stat().st_size == size


def test_bayer_dithering_keeps_the_brightness():
    palette = np.array([[0, 0, 0], [128, 128, 128], [255, 255, 255]], np.uint8)
    quantizer = Quantizer(palette, "bayer")
    for grey in (100, 128, 160):
        shown = palette[quantizer.indices(np.full((16, 16, 3), grey, np.uint8))]
        assert abs(shown.mean() - grey) < 16


def test_a_max_size_that_cannot_be_kept_writes_nothing(tmp_path):
    with pytest.raises(MediaError, match="below max_size 500 bytes; [0-9]+ was reached"):
        write_within(moving(), tmp_path / "c.gif", Encoding(), 500, lambda done: "")
    assert not list(tmp_path.iterdir())


def test_ping_pong_turns_without_showing_a_frame_twice():
    clip = moving(4)
    assert [int(f[24, :, 2].argmax()) for f in ping_pong(clip)] == [
        int(clip[i][24, :, 2].argmax()) for i in (0, 1, 2, 3, 2, 1)
    ]
    assert [len(ping_pong(clip[:n])) for n in (1, 2, 3)] == [1, 2, 4]


def middle(frame: np.ndarray) -> float:
    """Where the blue disc is, from left to right."""
    blue = (frame[..., 2] > 180) & (frame[..., 0] < 100)
    return float(np.nonzero(blue)[1].mean())


@pytest.mark.parametrize(("fps", "target"), [(8, 24), (8, 20), (7.5, 29.97)])
def test_interpolation_keeps_the_duration_and_moves_things_part_of_the_way(fps, target):
    clip = moving(8)
    shown = interpolated(clip, fps, target)
    assert len(shown) == round(8 * target / fps)
    for index, frame in enumerate(shown):
        time = min(index / target * fps, 7)  # in frames of the clip
        assert abs(middle(frame) - middle(clip[0]) - 3 * time) < 1.6
    assert error(shown[0], clip[0]) < 1.5


def test_interpolation_of_a_loop_goes_on_into_its_beginning():
    clip = ping_pong(moving(5))
    shown = interpolated(clip, 8, 16, loops=True)
    assert len(shown) == 16
    assert abs(middle(shown[15]) - (middle(clip[7]) + middle(clip[0])) / 2) < 1.6


@pytest.mark.parametrize(
    ("size", "told"), [((8, 64, 9), "16 pixels a side"), ((64, 64, 1), "two frames or more")]
)
def test_interpolation_refuses_what_it_cannot_do(size, told):
    with pytest.raises(MediaError, match=told):
        check_interpolation(*size)


@pytest.mark.parametrize(
    ("encoding", "size", "told"),
    [
        (Encoding(format="webm"), (63, 64), "webm needs an even width and height, got 63 x 64"),
        (Encoding(format="mp4", codec="h265"), (8, 8), "cannot write this mp4 with h265"),
        (Encoding(format="gif", fps=0.001), (8, 8), "gif shows a frame for 655 seconds at most"),
        (Encoding(format="webp"), (20000, 8), "webp holds 16383 pixels a side at most"),
    ],
)
def test_what_an_encoder_cannot_do_is_told_in_one_sentence(encoding, size, told):
    with pytest.raises(MediaError, match=told) as caught:
        check_encoder(encoding, *size)
    assert "\n" not in str(caught.value)


def test_a_missing_encoder_is_told_with_what_works(tmp_path, monkeypatch):
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\necho ' V....D libx264 H.264'\n")
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    with pytest.raises(
        MediaError, match=r"av1 needs libsvtav1 or libaom-av1, .*write mp4 with h26"
    ):
        check_encoder(Encoding(format="webm", codec="av1"), 64, 66)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "none"))
    with pytest.raises(MediaError, match="none: cannot be run as ffmpeg"):
        check_encoder(Encoding(format="webm", codec="av1"), 64, 68)


class Watching:
    """A clip whose fifth frame does something to the encoder that asks for it."""

    def __init__(self, act: Callable[[int], None]) -> None:
        self.act = act

    def __len__(self) -> int:
        return 400

    def __getitem__(self, index: int, /) -> np.ndarray:
        if index == 5:
            children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()
            self.act(int(children.split()[-1]))
            time.sleep(0.1)
        return moving(1, 256, 256)[0]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_a_killed_encoder_fails_the_clip_and_leaves_nothing(tmp_path):
    clip = Watching(lambda encoder: os.kill(encoder, signal.SIGKILL))
    with pytest.raises(MediaError, match="it was ended by signal 9"):
        write_clip(clip, tmp_path / "c.mp4", Encoding(format="mp4"))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_an_encoder_is_out_of_reach_of_the_terminal_s_interruptions(tmp_path):
    groups = []
    clip = Watching(lambda encoder: groups.append((encoder, os.getpgid(encoder))))
    write_clip(clip, tmp_path / "c.mp4", Encoding(format="mp4"))
    ((encoder, group),) = groups
    assert encoder == group != os.getpgid(0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("format", ["gif", "webp", "apng", "mp4", "webm"])
def test_a_full_disk_is_told_by_every_encoder(tmp_path, monkeypatch, format):
    """The file that is written beside the clip stands on a full disk."""
    monkeypatch.setattr(Path, "touch", lambda path, **_: path.symlink_to("/dev/full"))
    noise = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)
    with pytest.raises(MachineError, match=f"c.{format}: the disk is full"):
        write_clip(noise, tmp_path / f"c.{format}", Encoding(format=format))
    assert not list(tmp_path.iterdir())


class Endless:
    """Frames made when they are asked for: 110 kB each."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> np.ndarray:
        frame = np.full((192, 192, 3), 40, np.uint8)
        frame[index % 180 : index % 180 + 8, 100:110] = (index % 256, 90, 200)
        return frame


def test_memory_does_not_grow_with_the_clip(tmp_path):
    """256 frames are 28 MB."""
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3];"
        "from test_formats import grown; print(*grown(sys.argv[3]))"
    )
    places = [str(Path(__file__).parent), str(Path(__file__).parent.parent), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", code, *places], capture_output=True, text=True, check=True
    )
    assert all(float(megabytes) < 12 for megabytes in done.stdout.split()), done.stdout


def grown(folder: str) -> list[float]:
    """By how many MB the peak of this process grows with ten times the frames, by format."""
    peaks = []
    for format in ("gif", "apng", "webp", "mp4"):
        for count in (32, 256):
            encode(Endless(count), Path(folder) / f"c.{format}", Encoding(format=format), "")
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return [b - a for a, b in zip(peaks[::2], peaks[1::2], strict=True)]


def test_a_memory_mapped_clip_is_written_like_another(tmp_path):
    clip = moving(3)
    mapped = np.memmap(tmp_path / "frames", np.uint8, mode="w+", shape=clip.shape)
    mapped[:] = clip
    for name, frames in (("a", clip), ("b", mapped)):
        write_clip(frames, tmp_path / f"{name}.gif", Encoding(fps=float(Fraction(25, 2))))
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()
