"""A disk that takes no more: one sentence, its exit code, nothing half-written, and life after it.

A limit on the size of files stands for the full disk; the system refuses the write in its midst.
"""

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml

from animatediff_core.media.atomic import write_text
from animatediff_core.media.image import write_image

resource = pytest.importorskip("resource")


@contextmanager
def files_below(size):
    """No file grows beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def assert_told(done, *words):
    assert (done.exit_code, done.stdout) == (3, "")
    (line,) = (one for one in done.stderr.splitlines() if one.strip())
    assert line.startswith("error: ")
    assert all(word in line for word in words), line


LARGE = "the file would be larger than the limit"
CLIPS = {
    "gif": (["-L", 2], LARGE),
    "frames": (["-L", 2, "--format", "png"], LARGE),
    "frames between": (["-L", 18, "-C", 16, "-O", 4], "choose another folder"),
}


# imageio's writer of png closes its file again when it is collected, on the full disk
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", CLIPS)
def test_a_clip(asked, tmp_path, name):
    how, words = CLIPS[name]
    request = ("generate", "--prompt", "a red circle", "--seed", 1, "--steps", 1, "-o", "out", *how)
    with files_below(500):
        done = asked(*request)
    assert_told(done, "out", words)
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("output", ["-o", "--motion-file"])
def test_an_injected_model(asked, tmp_path, output):
    with files_below(300_000):
        done = asked("inject", "--base", "bundled:tiny", output, "new.safetensors", "--quiet")
    assert_told(done, "new.safetensors", LARGE)
    assert list(tmp_path.iterdir()) == []


def test_a_training_run_goes_on_when_there_is_room(asked, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    write_image(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8),
                  pictures / "a.png")  # fmt: skip
    write_text(pictures / "a.txt", "a red circle")
    config = {
        "stage": "lora", "base": "bundled:tiny", "lora_rank": 4, "max_train_steps": 1,
        "train_batch_size": 1, "checkpointing_steps": 1,
        "data": {"video_folder": "pictures", "cache_folder": "latents", "sample_size": 64},
    }  # fmt: skip
    Path("t.yaml").write_text(yaml.safe_dump(config))
    given = files_in(tmp_path)
    request = ("train", "t.yaml", "-o", "run", "--quiet")
    with files_below(1000):
        assert_told(asked(*request), "latents/", LARGE)
    assert files_in(tmp_path) == given
    with files_below(30_000):
        assert_told(asked(*request), "run/state.pt", LARGE)
    (latents,) = set(files_in(tmp_path)) - set(given)
    done = asked(*request)
    assert (done.exit_code, done.stdout) == (0, "run/lora.safetensors\n")
    made = {"loss.csv", "loss.png", "lora.safetensors", "state.pt"}
    assert set(files_in(tmp_path)) == {*given, latents, *(f"run/{name}" for name in made)}
