"""Files of clips: what is written is what is read, whole or not at all."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from animatediff_core.errors import MachineError, MediaError
from animatediff_core.jobs import Encoding
from animatediff_core.media.atomic import atomic_folder, atomic_write, write_text
from animatediff_core.media.clip import write_clip
from animatediff_core.media.frames import durations
from animatediff_core.media.image import contact_sheet
from animatediff_core.media.names import free_path, release
from animatediff_core.media.video import open_video


def moving(frames: int = 16, size: int = 32) -> np.ndarray:
    clip = np.full((frames, size, size, 3), (20, 60, 200), np.uint8)
    for i in range(frames):
        clip[i, 8:16, i : i + 8] = (220, 40, 30)
    return clip


@pytest.mark.parametrize("fps", [1, 7.5, 8, 12, 24, 29.97, 50])
def test_gif_timing_never_drifts(fps):
    total = np.cumsum([0, *durations(200, fps)])
    assert np.abs(total - 100 * np.arange(201) / fps).max() <= 0.5


def test_gif_is_read_back_by_pillow(tmp_path):
    write_clip(moving(), tmp_path / "c.gif", Encoding(format="gif"))
    spent, worst = 0, 0
    with Image.open(tmp_path / "c.gif") as picture:
        assert (picture.n_frames, picture.info["loop"]) == (16, 0)
        for i, frame in enumerate(moving()):
            picture.seek(i)
            spent += picture.info["duration"]
            shown = np.asarray(picture.convert("RGB")).astype(int)
            worst = max(worst, np.abs(shown - frame).mean())
    assert spent == 2000
    assert worst < 3


def test_mp4_is_h264_yuv420p_with_its_index_first(tmp_path):
    write_clip(moving(), tmp_path / "c.mp4", Encoding(format="mp4", fps=12, crf=10))
    with open_video(tmp_path / "c.mp4") as video:
        assert (video.num_frames, video._stream.average_rate) == (16, 12)
        stream = video._stream.codec_context
        assert (stream.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert np.abs(video.read_frames([3])[0].astype(int) - moving()[3]).mean() < 8
    content = (tmp_path / "c.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def noisy(frames: int = 3, height: int = 48, width: int = 64) -> np.ndarray:
    """Smooth random clips, which every codec has to work for."""
    draw = np.random.default_rng(1)
    coarse = draw.integers(0, 256, (frames, height // 8, width // 8, 3)).astype(np.uint8)
    clips = [Image.fromarray(one).resize((width, height)) for one in coarse]
    return np.stack([np.asarray(one) for one in clips])


@pytest.mark.parametrize(
    ("format", "codec", "crf"),
    [("mp4", "h264", 18), ("mp4", "h265", 20), ("mp4", "av1", 18), ("webm", "vp9", 18),
     ("webm", "av1", 18)],
)  # fmt: skip
def test_videos_have_the_quality_of_their_codec_unless_asked_otherwise(
    tmp_path, format, codec, crf
):
    written = {}
    for asked in (None, crf, crf + 1):
        path = tmp_path / f"{asked}.{format}"
        write_clip(noisy(), path, Encoding(format=format, codec=codec, crf=asked))
        written[asked] = path.read_bytes()
    assert written[None] == written[crf] != written[crf + 1]


def test_frames_are_read_by_number_in_any_order(tmp_path):
    write_clip(moving(), tmp_path / "c.mp4", Encoding(format="mp4", crf=0))
    with open_video(tmp_path / "c.mp4") as video:
        all_frames = video.read_all()
        assert np.array_equal(video.read_frames([9, 2, 2]), all_frames[[9, 2, 2]])


def test_mp4_refuses_odd_sizes(tmp_path):
    with pytest.raises(MediaError, match="even width and height, got 31 x 31"):
        write_clip(moving(size=31)[:, :31, :31], tmp_path / "c.mp4", Encoding(format="mp4"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"not a video at all", "cut"])
def test_broken_videos_are_named(tmp_path, content):
    path = tmp_path / "broken.mp4"
    if content == "cut":
        write_clip(moving(64, 64), path, Encoding(format="mp4"))
        content = path.read_bytes()[:400]
    path.write_bytes(content)
    with pytest.raises(MediaError, match=r"broken\.mp4"), open_video(path) as video:
        video.read_frames([0])


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "f.txt"
    path.write_text("old")

    def fail():
        with atomic_write(path) as beside:
            beside.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_a_file_has_the_permissions_of_the_umask(tmp_path):
    umask = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "f.txt") as beside:
            beside.chmod(0o600)
    finally:
        os.umask(umask)
    assert (tmp_path / "f.txt").stat().st_mode & 0o777 == 0o640


def test_a_temporary_file_follows_no_link(tmp_path, monkeypatch):
    monkeypatch.setattr("secrets.token_hex", lambda size: "0" * 2 * size)
    (tmp_path / "theirs").write_text("old")
    (tmp_path / ".f.00000000.part.txt").symlink_to("theirs")
    with pytest.raises(MachineError, match="f.txt: "):
        write_text(tmp_path / "f.txt", "new")
    assert (tmp_path / "theirs").read_text() == "old"


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    calls = []
    sync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: calls.append("fsync") or sync(file))
    monkeypatch.setattr(os, "replace", lambda *paths: calls.append("replace") or rename(*paths))
    with atomic_write(tmp_path / "f.txt") as beside:
        beside.write_text("new")
        beside.chmod(0o600)  # as safetensors does
        assert beside.suffix == ".txt"
        assert not (tmp_path / "f.txt").exists()
    assert calls == ["fsync", "replace"]
    assert (tmp_path / "f.txt").read_text() == "new"
    assert (tmp_path / "f.txt").stat().st_mode & 0o777 == 0o644
    monkeypatch.setattr(os, "rename", lambda *paths: calls.append("rename") or rename(*paths))
    with atomic_folder(tmp_path / "folder") as beside:
        for name in ("a", "b"):
            (beside / name).write_text(name)
    assert calls[2:] == ["fsync", "fsync", "rename"]
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["a", "b"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_as_such(tmp_path):
    def fill():
        with atomic_write(tmp_path / "f"), open("/dev/full", "w") as file:
            file.write("x")

    with pytest.raises(MachineError, match="disk is full"):
        fill()


def test_names_never_overwrite_and_a_clip_has_its_whole_stem(tmp_path):
    first = free_path(tmp_path, "a-1", ".gif")
    second = free_path(tmp_path, "a-1", ".gif")
    frames = free_path(tmp_path, "a-1", "")
    assert [p.name for p in (first, second, frames)] == ["a-1.gif", "a-1-2.gif", "a-1-3"]
    first.write_bytes(b"x")
    for path, suffix in ((first, ".gif"), (second, ".gif"), (frames, "")):
        release(path, suffix)
    assert os.listdir(tmp_path) == ["a-1.gif"]
    other = free_path(tmp_path, "a-1", ".mp4")  # its sidecar would be the gif's
    (tmp_path / "b-1.sheet.png").touch()
    assert (other.name, free_path(tmp_path, "b-1", ".gif").name) == ("a-1-2.mp4", "b-1-2.gif")


def test_contact_sheet_has_a_row_for_each_clip():
    sheet = contact_sheet([moving(), moving(4)], columns=4, gap=1)
    assert sheet.shape == (66, 132, 3)
