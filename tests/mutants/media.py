"""Wrong changes of how frames become files, and files frames."""

from . import Table

MUTANTS: Table = {
    ("media/image_source.py", "pictures"): [
        ("round(frame * every)", "int(frame * every)"),
        (
            "scale = max(size[0] / width, size[1] / height)",
            "scale = min(size[0] / width, size[1] / height)",
        ),
        ("left, top = (width - crop_width) / 2, (height - crop_height) / 2", "left, top = 0, 0"),
        ("if last >= count:", "if last > count:"),
        ("part.isdigit() else (1, 0, part)", "False else (1, 0, part)"),
        ("[files[number] for number in source.numbers]", "[files[0] for number in source.numbers]"),
    ],
    ("media/ffmpeg.py", "media formats"): [
        ('"h264": 18, "h265": 20', '"h264": 28, "h265": 20'),
        ('"h265": 20, "av1": 18', '"h265": 28, "av1": 18'),
        ('"vp9": 18}', '"vp9": 30}'),
        ("-pix_fmt yuv420p", "-pix_fmt yuv444p"),
        ("out_color_matrix=bt709", "out_color_matrix=bt601"),
        ('"-movflags +faststart" if', '"" if'),
        ('"-fflags +bitexact -flags:v +bitexact"', '""'),
        ('["-tag:v", "hvc1"]', "[]"),
        ('lossless=1"]\n        return', '"]\n        return'),
    ],
    ("media/atomic.py", "media full_disk"): [
        ("_flush(temporary)", "pass"),
        ("_flush(file)", "pass"),
        ("temporary.chmod(0o644)", "pass"),
        ("temporary.unlink(missing_ok=True)", "pass"),
        (
            "yield temporary\n            _flush(temporary)",
            "yield path\n            path.replace(temporary)\n            _flush(temporary)",
        ),
    ],
    ("media/frames.py", "formats media"): [
        ("range(count - 2, 0, -1)", "range(count - 1, 0, -1)"),
        ("range(count - 2, 0, -1)", "range(count - 2, -1, -1)"),
        ("round(unit * index / fps) for index", "int(unit / fps) * index for index"),
        ("int(columns[-1]) + 1, int(rows[-1]) + 1", "int(columns[-1]), int(rows[-1])"),
        ("previous = frame\n", "previous = previous\n"),
        ("return first.shape[1], first.shape[0]", "return first.shape[0], first.shape[1]"),
    ],
    ("media/gif.py", "formats media"): [
        (
            'struct.pack("<BHBB", 1 << 2 | 1, delay, transparent, 0)',
            'struct.pack("<BHBB", 2 << 2 | 1, delay, transparent, 0)',
        ),
        ("make_palette(frames, colours)", "make_palette(frames, 16)"),
        (
            'b"\\x21\\xff\\x0bNETSCAPE2.0\\x03\\x01\\x00\\x00\\x00"',
            'b"\\x21\\xff\\x0bNETSCAPE2.0\\x03\\x01\\x01\\x00\\x00"',
        ),
    ],
    ("media/palette.py", "formats"): [
        ("means.round()", "means * 0"),
        ("np.array([65536, 256, 1], np.uint32)", "np.array([65536, 256, 0], np.uint32)"),
        ("(grid + 0.5) / 64 - 0.5", "(grid + 0.5) / 64"),
    ],
    ("media/max_size.py", "formats output"): [
        ("if size(0) <= max_size:", "if size(0) < 2 * max_size:"),
        ("low = written + 1", "low = written + 2"),
        ("if reached > max_size:", "if reached > 2 * max_size:"),
        ("fps=encoding.fps / every", "fps=encoding.fps"),
    ],
    ("media/interpolate.py", "formats output"): [
        ("index % len(frames) if loops else len(frames) - 1", "len(frames) - 1"),
        ("return round(count * target / fps)", "return int(count * target / fps)"),
    ],
    ("media/edges.py", "pictures"): [],
}
