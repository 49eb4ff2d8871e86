"""Files of images and films as RGB: generated small, with four colours in their corners.

Expected values are Pillow's where a mode is its own, else those of ffmpeg's program for the same
file (`ffmpeg -i FILE -vf scale=iw*sar:ih -pix_fmt rgb24`, which turns and mirrors by itself).
"""

import json
import os
import struct
import zlib
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from animatediff_core.conditions import KINDS
from animatediff_core.conditions.images import mask_of
from animatediff_core.errors import MediaError
from animatediff_core.jobs import parse_prompts
from animatediff_core.media import rgb
from animatediff_core.media.image import read_image
from animatediff_core.media.image_source import ImageSource, check_images, read_images
from animatediff_core.media.video import open_video
from animatediff_core.training.clips import list_clips, read_pixels

INPUTS = Path(__file__).parent / "inputs"
COLOURS = {"R": (250, 10, 20), "G": (10, 240, 30), "B": (20, 30, 230), "Y": (200, 200, 60)}
TURNED = {
    1: (6, 4, "RGBY"),
    2: (6, 4, "GRYB"),
    3: (6, 4, "YBGR"),
    4: (6, 4, "BYRG"),
    5: (4, 6, "RBGY"),
    6: (4, 6, "BRYG"),
    7: (4, 6, "YGBR"),
    8: (4, 6, "GYRB"),
}
"""Width, height and corners in reading order of `corners(6, 4)` in each EXIF orientation."""


def corners(width: int, height: int) -> np.ndarray:
    """Red, green, blue and yellow quarters: h w 3 uint8."""
    image = np.empty((height, width, 3), np.uint8)
    for colour, (y, x) in zip("RGBY", np.ndindex(2, 2), strict=True):
        rows, columns = slice(y * height // 2, None), slice(x * width // 2, None)
        image[rows, columns] = COLOURS[colour]
    return image


def seen(image: np.ndarray) -> tuple[int, int, str]:
    """Width, height and the names of the corners' colours."""
    at = image[[0, 0, -1, -1], [0, -1, 0, -1]].astype(int)
    names = [min(COLOURS, key=lambda one: np.abs(point - COLOURS[one]).sum()) for point in at]
    return image.shape[1], image.shape[0], "".join(names)


def shown(path: Path, *, mask: bool = False, size: tuple[int, int] = (3, 1)) -> np.ndarray:
    """The image, h w 3 uint8, as a condition reads it."""
    return read_images(ImageSource(path, (0,), size, mask=mask))[0]


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", TURNED)
def test_images_are_turned_by_their_exif(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x112] = orientation
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(corners(6, 4)).save(path, exif=exif, **options.get(suffix, {}))
    assert seen(read_image(path)) == TURNED[orientation]
    check_images(ImageSource(path, (0,), TURNED[orientation][:2]))


def film(path: Path, frames=None, pixels="rgb24", codec="png", *, times=None, **stream) -> Path:
    """A film written by PyAV at 10 frames a second."""
    frames = [corners(6, 4)] if frames is None else frames
    with av.open(str(path), "w") as container:
        track = container.add_stream(codec, rate=10, options=stream.pop("options", {}))
        track.height, track.width = frames[0].shape[:2]
        track.pix_fmt = pixels
        track.codec_context.time_base = Fraction(1, 10)
        for name, value in stream.items():
            setattr(track.codec_context, name, value)
        for number, image in enumerate(frames):
            layout = "rgba" if image.shape[2] == 4 else "rgb24"
            frame = av.VideoFrame.from_ndarray(image, layout).reformat(format=pixels)
            frame.pts, frame.time_base = (times or range(99))[number], Fraction(1, 10)
            container.mux(track.encode(frame))
        container.mux(track.encode())
    return path


def first(path: Path) -> np.ndarray:
    with open_video(path) as video:
        return video.read_frames([0])[0]


def with_matrix(path: Path, a: float, b: float, c: float, d: float) -> Path:
    """The mp4 or mov with another display matrix."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44
    parts = [int(part * 65536) for part in (a, b, 0, c, d, 0, 0, 0)]
    content[start : start + 36] = struct.pack(">9i", *parts, 1 << 30)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("matrix", "orientation"),
    [((1, 0, 0, 1), 1), ((-1, 0, 0, 1), 2), ((-1, 0, 0, -1), 3), ((1, 0, 0, -1), 4),
     ((0, 1, 1, 0), 5), ((0, 1, -1, 0), 6), ((0, -1, -1, 0), 7), ((0, -1, 1, 0), 8)],
)  # fmt: skip
def test_films_are_turned_by_their_display_matrix(tmp_path, matrix, orientation):
    path = with_matrix(film(tmp_path / "a.mov"), *matrix)
    assert seen(first(path)) == TURNED[orientation]
    check_images(ImageSource(path, (0,), TURNED[orientation][:2]))


def test_a_film_turned_by_another_angle_is_rejected(tmp_path):
    path = with_matrix(film(tmp_path / "a.mov"), 0.7071, 0.7071, -0.7071, 0.7071)
    with pytest.raises(MediaError, match=r"a\.mov: is turned by an angle other than 90 degrees"):
        first(path)


def test_phone_files_stand_upright():
    photo, clip = read_image(INPUTS / "exif6.jpg"), first(INPUTS / "rot90.mp4")
    assert photo.shape == clip.shape == (96, 64, 3)
    assert photo[[5, 5, 90], [5, 58, 5]].tolist() == [[20, 40, 199], [200, 30, 30], [20, 40, 199]]
    assert clip[[5, 90, 90], [5, 5, 58]].tolist() == [[20, 39, 199], [198, 28, 29], [250, 255, 255]]
    for path in (INPUTS / "exif6.jpg", INPUTS / "rot90.mp4"):
        check_images(ImageSource(path, (0,), (64, 96)))


@pytest.mark.parametrize(
    ("aspect", "width"), [("2/1", 32), ("1/2", 8), ("16/15", 17), ("8/9", 14), ("1/1", 16)]
)
def test_films_are_scaled_to_square_pixels(tmp_path, aspect, width):
    path = film(tmp_path / "a.mov", [corners(16, 8)], sample_aspect_ratio=Fraction(aspect))
    assert seen(first(path)) == (width, 8, "RGBY")


RAMP = np.arange(24).reshape(4, 6) * 65535 // 23
NETPBM = b"P5 6 4 %d\n"


@pytest.mark.parametrize(
    ("name", "values", "span", "row"),
    [
        ("a.png", RAMP.astype(np.uint16), (0, 65535), [0, 11, 22, 33, 44, 55]),
        ("b.png", RAMP.astype(np.uint16) // 4, (0, 65535), [0, 3, 6, 8, 11, 14]),
        ("a.tif", RAMP.astype("<u2"), (0, 65535), [0, 11, 22, 33, 44, 55]),
        ("b.tif", RAMP.astype(">u2"), (0, 65535), [0, 11, 22, 33, 44, 55]),
        ("c.tif", RAMP.astype(np.int32) * 1000, (0, 65535000), [0, 11, 22, 33, 44, 55]),
        ("d.tif", RAMP.astype(np.int32) - 40000, (-40000, 25535), [0, 11, 22, 33, 44, 55]),
        ("e.tif", (RAMP / 65535).astype(np.float32), (0, 1), [0, 11, 22, 33, 44, 55]),
        ("f.tif", (RAMP / 131070).astype(np.float32), (0, 1), [0, 6, 11, 17, 22, 28]),
        ("g.tif", (RAMP / 6553.5 + 1).astype(np.float32), (1, 11), [0, 11, 22, 33, 44, 55]),
        ("h.tif", np.float32([[np.nan, np.inf, -np.inf, 2, 4, 3]]), (2, 4),
         [0, 255, 0, 0, 255, 128]),
        ("i.tif", np.full((4, 6), 7, np.int32), (7, 7), [255] * 6),
        ("a.pgm", NETPBM % 65535 + RAMP.astype(">u2").tobytes(), (0, 65535),
         [0, 11, 22, 33, 44, 55]),
        ("b.pgm", NETPBM % 1023 + (RAMP // 65).astype(">u2").tobytes(), (0, 65535),
         [0, 11, 22, 33, 44, 55]),
    ],
)  # fmt: skip
def test_deep_grey_is_scaled_by_its_range_which_is_reported(
    tmp_path, caplog, name, values, span, row
):
    path = tmp_path / name
    if isinstance(values, bytes):
        path.write_bytes(values)
    else:
        Image.fromarray(values).save(path)
    image = read_image(path)
    assert image[0].T.tolist() == [row] * 3
    check_images(ImageSource(path, (0,), image.shape[1::-1]))
    assert caplog.messages == [
        f"{path}: grey values from {span[0]:g} to {span[1]:g} are read as 0 to 255"
    ]


def test_a_sequence_of_deep_images_has_one_range(tmp_path):
    for name, value in (("1.tif", 4.0), ("2.tif", 2.0), ("3.tif", 10.0)):
        Image.fromarray(np.full((4, 6), value, np.float32)).save(tmp_path / name)
    read = read_images(ImageSource(tmp_path, (0, 1, 2), (6, 4)))
    assert read[:, 0, 0, 0].tolist() == [64, 0, 255]


def test_depth_of_16_bits_is_that_of_8():
    deep, shallow = (read_image(INPUTS / f"depth{bits}.png").astype(int) for bits in (16, 8))
    assert np.abs(deep - shallow).max() <= 1
    assert (deep.min(), deep.max()) == (0, 255)


def png(
    path: Path,
    colour: int,
    depth: int,
    rows: np.ndarray,
    extra: bytes = b"",
    size: tuple[int, int] | None = None,
) -> Path:
    """A PNG of any colour type, written by hand; its header may claim another size."""
    width, height = size or rows.shape[1::-1]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    chunks = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(data))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IEND", b""))
    return path


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(
    ("name", "mode", "expected"),
    [
        ("a.png", "1", [(0, 0, 0), (255, 255, 255), (0, 0, 0), (255, 255, 255)]),
        ("b.bmp", "L", [(83, 83, 83), (147, 147, 147), (50, 50, 50), (184, 184, 184)]),
        ("c.png", "LA", [(83, 83, 83), (147, 147, 147), (50, 50, 50), (184, 184, 184)]),
        ("d.png", "P", [(255, 0, 0), (0, 255, 51), (0, 51, 204), (204, 204, 51)]),
        ("e.tif", "PA", [(255, 0, 0), (0, 255, 51), (0, 51, 204), (204, 204, 51)]),
        ("f.webp", "RGBA", list(COLOURS.values())),
        ("g.tif", "RGBX", list(COLOURS.values())),
        ("h.tif", "CMYK", list(COLOURS.values())),
        ("i.jpg", "CMYK", list(COLOURS.values())),
        ("j.tif", "YCbCr", [(248, 9, 18), (9, 240, 28), (18, 29, 227), (199, 200, 59)]),
        ("k.tif", "LAB", [(249, 6, 20), (34, 240, 26), (25, 30, 230), (200, 200, 59)]),
        ("l.gif", "P", [(255, 0, 0), (0, 255, 51), (0, 51, 204), (204, 204, 51)]),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, name, mode, expected):
    path = tmp_path / name
    image = Image.fromarray(corners(32, 32)).convert(mode, dither=Image.Dither.NONE)
    image.save(path, **({"lossless": True} if name.endswith("webp") else {"quality": 100}))
    found = read_image(path)[[4, 4, -5, -5], [4, -5, 4, -5]].astype(int)
    assert np.abs(found - expected).max() <= 2


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_16_bits_of_each_channel_are_read(tmp_path, colour, channels):
    values = np.zeros((1, 2, channels), ">u2")
    values[0, 0] = [0x1234, 0x8000, 0xFFFF, 0xFFFF][:channels]
    values[0, 0, -1] = 0xFFFF
    values[0, 1] = 0xFFFF
    image = read_image(png(tmp_path / "a.png", colour, 16, values))
    assert image.tolist() == [[[0x12, 0x80, 0xFF] if channels > 2 else [0x12] * 3, [255, 255, 255]]]


def tinted(colour, alphas=(255, 128, 0)) -> Image.Image:
    return Image.fromarray(np.uint8([[(*colour, alpha) for alpha in alphas]]))


ORANGE, ON_WHITE = (200, 100, 0), [[200, 100, 0], [227, 177, 127], [255] * 3]


@pytest.mark.parametrize(
    ("name", "image", "options", "white", "black"),
    [
        ("a.png", tinted(ORANGE), {}, ON_WHITE, None),
        ("b.webp", tinted(ORANGE), {"lossless": True, "exact": True}, ON_WHITE, None),
        ("c.tif", tinted(ORANGE), {}, ON_WHITE, None),
        ("d.png", tinted(ORANGE).convert("RGB"), {"transparency": ORANGE}, [[255] * 3] * 3,
         [[0] * 3] * 3),
        ("e.png", Image.fromarray(np.uint8([[9, 200, 255]])), {"transparency": 9},
         [[255] * 3, [200] * 3, [255] * 3], [[0] * 3, [200] * 3, [255] * 3]),
        ("f.png", tinted((90, 90, 90)).convert("LA"), {}, [[90] * 3, [172] * 3, [255] * 3], None),
        ("g.gif", Image.fromarray(np.uint8([[9, 200, 255]])), {"transparency": 9},
         [[255] * 3, [200] * 3, [255] * 3], [[0] * 3, [200] * 3, [255] * 3]),
    ],
)  # fmt: skip
def test_transparent_images_lie_on_white_and_masks_on_black(
    tmp_path, name, image, options, white, black
):
    path = tmp_path / name
    image.save(path, **options)
    assert shown(path)[0].tolist() == white
    mask = shown(path, mask=True)[0].tolist()
    assert mask == (black or [[255] * 3, [128] * 3, [0] * 3])


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (40, 0, 90)])
def test_a_mask_of_one_colour_is_its_alpha(tmp_path, colour):
    image = tinted(colour)
    image.putpixel((2, 0), (1, 2, 3, 0))  # a colour that nobody sees
    image.save(tmp_path / "a.png")
    assert shown(tmp_path / "a.png", mask=True)[0, :, 0].tolist() == [255, 128, 0]
    tinted(colour, (255, 255, 255)).save(tmp_path / "b.png")
    assert shown(tmp_path / "b.png", mask=True)[0].tolist() == [list(colour)] * 3


def test_masks_with_the_information_in_different_channels_are_equal():
    files = (INPUTS / f"{name}.png" for name in ("mask", "mask_alpha", "mask_alpha_black"))
    plain, white, black = (shown(file, mask=True, size=(64, 64)) for file in files)
    assert np.array_equal(white, plain)
    assert np.array_equal(black, plain)


def test_a_transparent_palette_is_read_without_a_word(capfd):
    assert shown(INPUTS / "pal.png", size=(64, 64))[0, 0].tolist() == [255, 255, 255]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "pixels", "codec", "corner"),
    [
        ("a.mkv", "bgr0", "ffv1", (250, 10, 20)),
        ("b.mkv", "gbrp10le", "ffv1", (250, 10, 20)),
        ("c.mkv", "gbrp16le", "ffv1", (250, 10, 20)),
        ("d.mkv", "gray", "ffv1", (83, 83, 83)),
        ("e.mkv", "gray10le", "ffv1", (83, 83, 83)),
        ("f.mkv", "gray16le", "ffv1", (83, 83, 83)),
        ("g.mkv", "yuv444p", "ffv1", (250, 9, 20)),
        ("h.mkv", "yuv420p10le", "ffv1", (249, 9, 19)),
        ("i.mkv", "yuv422p12le", "ffv1", (249, 9, 19)),
        ("j.mkv", "yuv444p16le", "ffv1", (250, 10, 20)),
        ("k.mov", "rgb48be", "png", (250, 10, 20)),
        ("m.mov", "monob", "png", (0, 0, 0)),
        ("n.mov", "argb", "qtrle", (250, 10, 20)),
        ("o.mov", "yuv422p10le", "prores_ks", (249, 9, 19)),
        ("p.mp4", "yuv420p", "libx264", (249, 8, 19)),
        ("q.mp4", "yuv420p10le", "libx264", (249, 11, 20)),
        ("r.mp4", "yuv444p", "libx264", (250, 10, 20)),
        ("s.avi", "yuvj420p", "mjpeg", (251, 9, 17)),
        ("t.avi", "yuv420p", "mpeg4", (249, 7, 21)),
        ("u.ts", "yuv420p", "mpeg2video", (251, 7, 19)),
        ("v.webm", "yuv420p", "libvpx-vp9", (249, 8, 19)),
        ("w.webm", "yuv420p", "libvpx", (249, 8, 19)),
        ("x.flv", "yuv420p", "flv", (249, 7, 21)),
    ],
)
def test_films_of_every_depth_and_codec_become_rgb(tmp_path, name, pixels, codec, corner):
    path = film(tmp_path / name, [corners(64, 32)] * 3, pixels, codec)
    with open_video(path) as video:
        assert video.num_frames == 3
        image = video.read_all()[2]
    assert image.shape == (32, 64, 3)
    assert np.abs(image[4, 4].astype(int) - corner).max() <= 2
    assert pixels[:4] in ("gray", "mono") or seen(image)[2] == "RGBY"


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [("a.mov", "png", "rgba"), ("b.mov", "qtrle", "argb"), ("c.mkv", "ffv1", "bgra"),
     ("d.webm", "libvpx-vp9", "yuva420p"), ("e.webm", "libvpx", "yuva420p")],
)  # fmt: skip
def test_transparent_films_lie_on_white_and_masks_are_their_alpha(tmp_path, name, codec, pixels):
    frame = np.full((16, 16, 4), (90, 90, 90, 255), np.uint8)
    frame[:, 8:, 3] = 0
    options = {"options": {"auto-alt-ref": "0"}} if codec == "libvpx" else {}
    path = film(tmp_path / name, [frame] * 2, pixels, codec, **options)
    image, mask = (shown(path, mask=mask, size=(16, 16)).astype(int) for mask in (False, True))
    assert np.abs(image[8, [2, 13]] - [[90], [255]]).max() <= 2
    assert np.abs(mask[8, [2, 13]] - [[255], [0]]).max() <= 2


SMPTE2084, ARIB_STD_B67, BT2020, BT2020_NCL = 16, 18, 9, 9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("transfer", "expected"),
    [
        (SMPTE2084, [(156, 156, 155), (207, 207, 207), (182, 43, 18), (0, 64, 169)]),
        (ARIB_STD_B67, [(132, 132, 132), (174, 174, 174), (151, 69, 47), (0, 77, 130)]),
    ],
)
def test_hdr_films_are_tone_mapped(tmp_path, transfer, expected):
    """Expected: ffmpeg 8, `-vf scale=out_transfer=bt709:out_primaries=bt709:intent=perceptual`."""
    path = hdr_film(tmp_path / "a.mp4", transfer)
    assert np.abs(first(path)[8, 4::8].astype(int) - expected).max() <= 2


@pytest.mark.parametrize("transfer", [SMPTE2084, ARIB_STD_B67])
def test_hdr_films_are_rejected_where_they_cannot_be_tone_mapped(tmp_path, transfer, monkeypatch):
    monkeypatch.setattr(rgb, "_TONE_MAP", ":unknown=1")
    path = hdr_film(tmp_path / "a.mp4", transfer)
    with pytest.raises(MediaError, match=r"a\.mp4: is HDR, which this PyAV cannot tone-map"):
        check_images(ImageSource(path, (0,), (32, 16)))
    sdr = first(hdr_film(tmp_path / "b.mp4", 1))[8, 4::8].astype(int)
    assert np.abs(sdr - [(148,) * 3, (192,) * 3, (141, 77, 51), (51, 77, 141)]).max() <= 4


def hdr_film(path: Path, transfer: int) -> Path:
    """Grey of 203 and 1000 nits, orange and blue in BT.2020."""
    frame = np.empty((16, 32, 3), np.uint16)
    values = [(0.58,) * 3, (0.75,) * 3, (0.55, 0.3, 0.2), (0.2, 0.3, 0.55)]
    for number, value in enumerate(values):
        frame[:, 8 * number : 8 * number + 8] = np.float32(value) * 65535
    with av.open(str(path), "w") as container:
        track = container.add_stream("libx264", rate=10, options={"crf": "0"})
        track.width, track.height, track.pix_fmt = 32, 16, "yuv444p10le"
        context = track.codec_context
        context.color_trc, context.color_primaries, context.colorspace = (
            transfer,
            BT2020,
            BT2020_NCL,
        )
        rgb48 = av.VideoFrame.from_ndarray(frame, "rgb48le")
        pixels = rgb48.reformat(format="yuv444p10le", dst_colorspace=9)
        container.mux(track.encode(pixels))
        container.mux(track.encode())
    return path


def test_films_have_their_own_matrix_and_range_in_turn(tmp_path):
    """BT.601 in 16 to 235, BT.709 in 16 to 235, BT.601 in 0 to 255, of the same values."""
    yuv = av.VideoFrame(32, 32, "yuv444p")
    for plane, value in zip(yuv.planes, (120, 90, 180), strict=True):
        plane.update(bytes([value]) * plane.buffer_size)
    expected = {(5, 1): (204, 94, 44), (1, 1): (214, 102, 41), (5, 2): (193, 96, 53)}
    for (colorspace, extent), colour in expected.items():
        path = tmp_path / f"{colorspace}-{extent}.mp4"
        with av.open(str(path), "w") as container:
            track = container.add_stream("libx264", rate=10, options={"crf": "0"})
            track.width, track.height, track.pix_fmt = 32, 32, "yuv444p"
            track.codec_context.colorspace, track.codec_context.color_range = colorspace, extent
            container.mux(track.encode(yuv))
            container.mux(track.encode())
        assert np.abs(first(path)[9, 9].astype(int) - colour).max() <= 1, path


@pytest.mark.parametrize(
    ("name", "pixels", "codec"),
    [("a.mkv", "bgr0", "ffv1"), ("a.mov", "rgb24", "png"), ("a.ts", "yuv420p", "mpeg2video"),
     ("a.webm", "yuv420p", "libvpx-vp9")],
)  # fmt: skip
def test_a_variable_frame_rate_is_read_by_time(tmp_path, name, pixels, codec):
    """Six frames in 1.1 s, so one each 0.22 s: at 0.44 s, the third is shown."""
    path = film(tmp_path / name, greys(6), pixels, codec, times=[0, 1, 2, 3, 6, 11])
    with open_video(path) as video:
        assert video.num_frames == 6
        assert levels(video.read_all()) == [0, 2, 3, 4, 4, 5]
        assert levels(video.read_frames([4, 1])) == [4, 2]


def greys(count: int, size: int = 32) -> list[np.ndarray]:
    """Frames of 20 times their number."""
    return [np.full((size, size, 3), 20 * number, np.uint8) for number in range(count)]


def levels(frames: np.ndarray) -> list[int]:
    """The numbers of `greys`."""
    return [round(float(frame.mean()) / 20) for frame in frames]


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_animations_are_read_by_time(tmp_path, kind):
    images = [Image.fromarray(one) for one in greys(6)]
    path = tmp_path / f"a.{kind}"
    lengths = [100, 100, 100, 300, 500, 70]
    images[0].save(path, save_all=True, append_images=images[1:], duration=lengths, lossless=True)
    assert levels(read_images(ImageSource(path, range(6), (32, 32)))) == [0, 2, 3, 4, 4, 5]


def test_hidden_frames_of_an_edit_list_are_not_counted():
    """The header counts 24 frames; ffmpeg and players show 16."""
    with open_video(INPUTS / "cut2.mp4") as video:
        assert video.num_frames == len(video.read_all()) == 16
        assert video._stream.frames == 24
    with pytest.raises(MediaError, match="has 16 images but the clip needs number 16"):
        check_images(ImageSource(INPUTS / "cut2.mp4", (0, 16), (64, 64), "stretch"))


def test_frames_are_counted_where_the_header_is_wrong_or_silent(tmp_path):
    content = bytearray(film(tmp_path / "a.avi", greys(5), "yuv420p", "mpeg4").read_bytes())
    total, length = content.index(b"avih") + 24, content.index(b"strh") + 40
    for place in (total, length):
        assert struct.unpack_from("<I", content, place) == (5,)
        struct.pack_into("<I", content, place, 50)
    lying = tmp_path / "b.avi"
    lying.write_bytes(content)
    fragments = {"movflags": "frag_keyframe+empty_moov"}
    silent = film(tmp_path / "c.mp4", greys(5), "yuv420p", "libx264", options=fragments)
    for path in (lying, silent):
        with open_video(path) as video:
            assert video.num_frames == len(video.read_all()) == 5, path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.mp4", b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/b.ts\n", "is not a readable video"),
        ("a.m3u8", b"#EXTM3U\n#EXTINF:1,\nc.mp4\n", "is not a readable video"),
        ("a.mkv", b"ffconcat version 1.0\nfile c.mp4\n", "is not a readable video"),
        ("a.sdp", b"v=0\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n", "is not a readable video"),
        ("b.mp4", "png", "is not a readable video"),
        ("c.mp4", b"", "is not a readable video"),
        ("a.heic", "avif", "is a HEIF or AVIF image; save it as PNG or JPEG"),
        ("a.png", "eps", "is not a readable image"),
        ("b.png", "ico", "is not a readable image"),
        ("c.png", b"", "is not a readable image"),
        ("fifo.mp4", None, "is not a file; name a file"),
        ("fifo.png", None, "is not a file; name a file"),
        ("http://127.0.0.1:9/a.mp4", None, "no such video; check the path"),
        ("a" * 300 + ".png", None, "no such image; check the path"),
        ("a" * 300 + ".mp4", None, "no such video; check the path"),
        ("a\0.png", None, "no such image; check the path"),
    ],
)
def test_only_files_of_known_formats_are_opened(tmp_path, name, content, message, capfd):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        Image.fromarray(corners(16, 16)).save(path, format=content)
    elif "fifo" in name:
        os.mkfifo(path)
    with pytest.raises(MediaError, match=message) as error:
        check_images(ImageSource(path, (0,), (16, 16)))
    assert str(path).replace("\0", "\\x00") in str(error.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("size", "extra", "message"),
    [
        ((9000, 9000), b"", "has 9000 x 9000 pixels; at most 67108864 are read; make it smaller"),
        ((65000, 65000), b"", "has too many pixels; at most 67108864 are read; make it smaller"),
        (None, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**21))), "is not a readable image"),
        (None, chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(2**21))), "is not a readable image"),
        (None, chunk(b"IDAT", b"nothing"), "is not a readable image"),
    ],
)
def test_bombs_and_damaged_images_are_rejected_in_a_sentence(tmp_path, size, extra, message):
    path = png(tmp_path / "a.png", 0, 8, np.uint8([[7, 8]]), extra, size)
    with pytest.raises(MediaError, match=message) as error:
        check_images(ImageSource(path, (0,), (2, 1)))
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.bmp", "a.tif"])
def test_truncated_images_are_rejected_before_a_model_is_loaded(tmp_path, name):
    path, noise = tmp_path / name, np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(MediaError, match=rf"{name}: is not a readable image"):
        check_images(ImageSource(path, (0,), (32, 32)))


def test_a_photo_with_several_images_is_its_first(tmp_path):
    photo = Image.fromarray(corners(32, 32))
    photo.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[photo.rotate(180)])
    read = read_images(ImageSource(tmp_path / "a.jpg", (0, 1, 2), (32, 32)))
    assert [seen(one)[2] for one in read] == ["RGBY"] * 3


def test_films_with_huge_or_no_frames_are_rejected(tmp_path, monkeypatch):
    path = film(tmp_path / "a.mov", [corners(64, 64)])
    with av.open(str(tmp_path / "b.mp4"), "w") as container:
        container.add_stream("aac", rate=44100)
        container.start_encoding()
    with pytest.raises(MediaError, match="has no video stream that can be decoded"):
        first(tmp_path / "b.mp4")
    wide = film(tmp_path / "c.mov", [corners(16, 16)], sample_aspect_ratio=Fraction(2))
    monkeypatch.setattr("animatediff_core.media.opening.MAX_PIXELS", 511)
    with pytest.raises(MediaError, match="has 64 x 64 pixels; at most 511 are read"):
        first(path)
    with pytest.raises(MediaError, match="has 32 x 16 pixels; at most 511 are read"):
        first(wide)


def test_folders_skip_hidden_files_and_name_gaps_and_sizes(tmp_path, caplog):
    for number in (1, 2, 3, 5, 6):
        Image.fromarray(greys(7)[number]).save(tmp_path / f"f{number:03d}.png")
        (tmp_path / f"._f{number:03d}.png").write_bytes(b"\0\5\x16\7 macOS")
    (tmp_path / ".hidden.jpg").write_bytes(b"nothing")
    source = ImageSource(tmp_path, (0, 1, 2, 3, 4), (32, 32))
    check_images(source)
    assert levels(read_images(source)) == [1, 2, 3, 5, 6]
    gap = f"{tmp_path}: numbers are missing after f003.png; images are used in order"
    assert caplog.messages == [gap]
    Image.new("RGB", (16, 32)).save(tmp_path / "f005.png")
    with pytest.raises(MediaError, match=r"f005\.png: is 16 x 32 pixels but the clip 32 x 32"):
        check_images(source)
    assert read_images(ImageSource(tmp_path, (3, 4), (8, 8), "crop")).shape == (2, 8, 8, 3)


@pytest.mark.parametrize(
    "names", [["1.png"], ["0.png", "8.png", "16.png"], ["a.png", "b.png"], ["2.png", "2b.png"]]
)
def test_even_steps_and_plain_names_have_no_gaps(tmp_path, caplog, names):
    for name in names:
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    check_images(ImageSource(tmp_path, (0,), (2, 2)))
    assert caplog.messages == []


def test_every_condition_reads_its_masks_as_masks(tmp_path):
    black = {"path": str(INPUTS / "mask_alpha_black.png")}
    wanted = {
        "prompt": "x",
        "width": 64,
        "height": 64,
        "frames": 1,
        "start": {"images": black, "mask": black},
        "regions": [{"prompt": "y", "mask": black}],
        "ip_adapters": [{"path": "a", "encoder": "e", "images": black["path"], "mask": black}],
    }
    (job,) = parse_prompts(json.dumps({"jobs": [wanted]}), "p.json", tmp_path)
    sources = dict(found for kind in KINDS for found in kind.images(job))
    assert {key: source.mask for key, source in sources.items()} == {
        "start.images": False,
        "start.mask": True,
        "regions[0].mask": True,
        "ip_adapters[0].images[0]": False,
        "ip_adapters[0].mask": True,
    }
    model = SimpleNamespace(base=SimpleNamespace(vae_scale_factor=8))
    mask = mask_of(job.start.mask, job, model, (64, 64))[0, 0, 0]
    assert mask[[0, 3], [0, 3]].tolist() == [0, 1]


def test_training_reads_as_conditions_do(tmp_path):
    for name in ("a", "._a"):
        (tmp_path / f"{name}.mp4").write_bytes((INPUTS / "cut2.mp4").read_bytes())
    (tmp_path / "a.txt").write_text("a caption")
    data = SimpleNamespace(video_folder=tmp_path, csv_path=None, camera=None)
    (clip,) = list_clips(SimpleNamespace(data=data, stage="motion"))
    assert read_pixels(clip.path, (64, 96)).shape == (16, 3, 64, 96)
    photo = read_pixels(INPUTS / "exif6.jpg", (96, 64))[0]
    assert (photo.permute(1, 2, 0)[5, 58] * 127.5 + 127.5).round().tolist() == [200, 30, 30]
    depth = read_pixels(INPUTS / "depth16.png", (64, 64))
    assert (depth.min().item(), depth.max().item()) == (-1, 1)


def test_raw_films_with_a_palette_are_rejected(tmp_path):
    path = tmp_path / "raw.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("rawvideo", rate=8)
        stream.width, stream.height, stream.pix_fmt = 16, 8, "pal8"
        frame = av.VideoFrame(16, 8, "pal8")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(
        MediaError, match=r"raw\.avi: .* has a palette, which is lost; make it an mp4"
    ):
        open_video(path)
