"""Pictures for a clip's frames, and edges made of them."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from animatediff_core.errors import MediaError
from animatediff_core.media.edges import canny
from animatediff_core.media.image_source import (
    ImageSource,
    check_images,
    fit_image,
    read_images,
    spread,
)
from animatediff_core.media.video import open_video


@pytest.fixture
def folder(tmp_path):
    """Twelve grey pictures, 8 x 6, as bright as their number; in the wrong order by letters."""
    for number in range(12):
        Image.new("RGB", (8, 6), (number, number, number)).save(tmp_path / f"a{number}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_a_folder_is_read_by_number(folder):
    read = read_images(ImageSource(folder, spread(4, 2, 3), (8, 6)))
    assert read.shape == (4, 6, 8, 3)
    assert read[:, 0, 0, 0].tolist() == [2, 5, 8, 11]


@pytest.mark.parametrize(
    ("spreading", "numbers"),
    [((4, 0, 1.5), (0, 2, 3, 4)), ((4, 2, 0.7), (2, 3, 3, 4)), ((3, 5, 2), (5, 7, 9))],
)
def test_the_nearest_picture_is_taken(spreading, numbers):
    assert spread(*spreading) == numbers


def test_one_picture_stands_for_all_frames(folder):
    read = read_images(ImageSource(folder / "a7.png", spread(3, 0, 1), (8, 6)))
    assert (read == 7).all()


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_an_animated_picture_is_read_by_frame(tmp_path, kind):
    clip = [Image.new("RGB", (16, 16), (20 * i, 0, 0)) for i in range(8)]
    path = tmp_path / f"v.{kind}"
    clip[0].save(path, save_all=True, append_images=clip[1:], lossless=True)
    read = read_images(ImageSource(path, (1, 3, 7, 3), (16, 16)))
    assert np.abs(read[:, 0, 0, 0].astype(int) - [20, 60, 140, 60]).max() <= 4
    with pytest.raises(MediaError, match="has 8 images"):
        check_images(ImageSource(path, (8,), (16, 16)))


def test_a_video_is_read_by_frame(videos):
    with open_video(videos[0]) as video:
        expected = video.read_frames((2, 5))
    read = read_images(ImageSource(videos[0], (2, 5), expected.shape[2:0:-1]))
    assert np.array_equal(read, expected)


def test_crop_keeps_the_middle_and_stretch_all():
    picture = np.zeros((4, 8, 3), np.uint8)
    picture[:, :2] = picture[:, 6:] = 255  # white sides, black middle square
    assert fit_image(picture, (4, 4), "crop").max() == 0
    stretched = fit_image(picture, (4, 4), "stretch")
    assert stretched[:, 0].min() > 200
    assert fit_image(picture, (8, 4), "exact") is picture


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": (16, 6)}, "is 8 x 6 pixels but the clip 16 x 6; .* set fit to crop"),
        ({"numbers": (11, 12)}, "has 12 images but the clip needs number 12"),
        ({"name": "gone.png"}, "gone.png: no such image"),
        ({"name": "gone.mp4"}, "gone.mp4: no such video"),
        ({"name": "broken.png"}, "is not a readable image"),
        ({"name": "empty"}, "holds no images"),
    ],
)
def test_what_does_not_suit_the_clip_is_refused(folder, change, message):
    (folder / "broken.png").write_bytes(b"\x89PNG nothing")
    (folder / "empty").mkdir()
    path = folder / change.pop("name", "pictures")
    if path.name == "pictures":
        path.mkdir()
        for file in folder.glob("a*.png"):
            file.rename(path / file.name)
    settings = {"path": path, "numbers": (0, 1), "size": (8, 6), **change}
    with pytest.raises(MediaError, match=message):
        check_images(ImageSource(**settings))


@pytest.mark.parametrize(
    ("low", "high", "points", "digest"),
    [
        (100, 200, 875, "5695269254e35e8c"),
        (50, 250, 204, "5c460849544967c1"),
        (150, 160, 831, "6c2f350eed993469"),
    ],
)
def test_edges_are_those_of_opencv(low, high, points, digest):
    """Expected: `cv2.Canny(picture, low, high)` of OpenCV 4, sha256 of its bytes."""
    y, x = np.mgrid[:64, :80]
    channels = (
        128 + 100 * np.sin(x / 3 + y / 11) * (y / 64),
        40 + 3 * np.hypot(x - 40, y - 30),
        60 * ((x // 9 + y // 13) % 2),
    )
    picture = np.stack(channels, -1).clip(0, 255).astype(np.uint8)
    edges = canny(picture, low, high)
    assert edges.shape == picture.shape
    assert (edges[..., 0] > 0).sum() == points
    assert hashlib.sha256(edges[..., 0].tobytes()).hexdigest()[:16] == digest
