"""Checks of a run before the first second of a GPU is spent: folder, file, memory, words."""

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from animatediff_core.errors import AnimateDiffError, MachineError
from animatediff_core.jobs import Job, Output
from animatediff_core.planning import memory, output
from animatediff_core.planning.jobs import plan
from animatediff_core.planning.memory import check_memory
from animatediff_core.runs import timing

JOB = Job(name="a", prompt={0: "a red circle"}, seed=1, frames=8, width=96, height=64)


def test_a_folder_that_clips_cannot_be_written_to_fails_first(tmp_path, monkeypatch):
    output.check_folder(tmp_path / "new" / "clips", [JOB])
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(AnimateDiffError, match=r"file: is a file; choose another .* -o"):
        output.check_folder(tmp_path / "file" / "clips", [JOB])
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(MachineError, match="no permission to write there"):
        output.check_folder(tmp_path / "new", [JOB])


def test_a_disk_without_room_for_the_clips_fails_first(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    png = JOB.replace(output=Output(format="png", interpolate=16))  # 2 bytes a pixel, 16 frames
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2 * 2 * 16 * 96 * 64))
    output.check_folder(tmp_path, [png, png])
    with pytest.raises(MachineError, match="are needed for 3 clips"):
        output.check_folder(tmp_path, [png, png, png])


def test_a_job_that_fits_no_memory_is_rejected_with_sizes_that_fit(monkeypatch):
    (planned,) = plan([JOB.replace(width=640, height=320, frames=16)])
    need = memory.need_of(planned, torch.float32, memory.MemorySettings(decode_chunk=1))
    assert need.denoising > need.decoding
    room = need.weights + need.denoising * 5 // 8
    monkeypatch.setattr(memory, "memory_of", lambda device: room)
    with pytest.raises(AnimateDiffError, match=r"lower frames \(-L\) to 10, or .* 480 x 224"):
        check_memory(planned, torch.float32, torch.device("cpu"))
    monkeypatch.setattr(memory, "memory_of", lambda device: need.peak)
    check_memory(planned, torch.float32, torch.device("cpu"))
    monkeypatch.setattr(memory, "memory_of", lambda device: need.weights // 2)
    with pytest.raises(AnimateDiffError, match="use a smaller base model"):
        check_memory(planned, torch.float32, torch.device("cpu"))
    monkeypatch.setattr(memory, "memory_of", lambda device: need.denoising)  # without the weights
    check_memory(planned, torch.float32, torch.device("cuda"))


def test_o_may_name_the_file_of_one_clip(asked, tmp_path):
    target = tmp_path / "new" / "clip.webp"
    done = asked("generate", "--prompt", "a red circle", "-o", target, "--dry-run")
    assert done.stdout.strip() == str(target)
    twice = ("generate", "--prompt", "a red circle", "-r", 2, "--dry-run")
    done = asked(*twice, "-o", target)
    assert done.exit_code == 2
    assert "is one file, but 2 clips would be made; name a folder" in done.stderr
    target.parent.mkdir()
    target.write_bytes(b"")
    done = asked("generate", "--prompt", "a red circle", "-o", target, "--dry-run")
    assert done.exit_code == 2
    assert "exists already; delete it, or choose another name" in done.stderr
    folder = tmp_path / "named.gif"
    folder.mkdir()
    assert asked(*twice, "-o", folder).exit_code == 0


def test_a_dry_run_shows_a_table_of_80_columns_without_a_terminal(asked, tmp_path):
    name = "a-long-name-of-a-job-that-no-column-holds"
    done = asked("generate", "--prompt", name, "-W", 512, "--dry-run", "-o", tmp_path / "x")
    lines = done.stderr.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if "bundled:tiny" in line and "16 x 512 x 64" in line]
    assert not list(tmp_path.iterdir())
    quiet = asked("generate", "--prompt", "a red circle", "--dry-run", "--quiet")
    assert quiet.stderr == ""


def test_a_plan_tells_the_time_of_such_a_clip_once_one_was_made(asked, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    request = ("generate", "--prompt", "x", "-L", 4, "--steps", 10, "--dry-run")
    job = JOB.replace(frames=4, width=64, height=64, steps=2, guidance_scale=3.0)
    assert json.loads(asked(*request, "--json").stdout)["seconds"] is None
    timing.note(job, "another family", torch.device("cpu"), torch.float32, 9.0)
    family = plan([job])[0].found.family
    timing.note(job, family, torch.device("cpu"), torch.float32, 5.0)
    assert json.loads(asked(*request, "--json").stdout)["seconds"] == 25.0  # ten steps, not two
    assert "25 s" in asked(*request).stderr
    assert json.loads(asked(*request, "--json", "-W", 128).stdout)["seconds"] is None
    (tmp_path / "animatediff" / "times.json").write_text("[broken")
    assert json.loads(asked(*request, "--json").stdout)["seconds"] is None


def test_a_user_without_a_home_has_no_times(monkeypatch):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    timing.note(JOB, "SD1.5", torch.device("cpu"), torch.float32, 9.0)
    assert timing.seconds_of(JOB, "SD1.5", torch.device("cpu"), torch.float32) is None


def test_a_prompt_without_a_known_word_is_warned_of(caplog):
    caplog.set_level("WARNING", "animatediff_core")
    plan([JOB.replace(prompt={0: "cyberpunk city 8k"})])
    (record,) = caplog.records
    assert record.getMessage().startswith("a: bundled:tiny knows no word of the prompt")
    caplog.clear()
    plan([JOB, JOB.replace(prompt={0: "cyberpunk city", 4: "a CIRCLE at night"})])
    assert not caplog.records
