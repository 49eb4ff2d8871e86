"""Windows and macOS: what Linux can show of them."""

import errno
import io
import os
import pickle
import signal
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
import typer

from animatediff_core.errors import MachineError, PromptFileError
from animatediff_core.jobs import load_prompt_file
from animatediff_core.jobs.conditions import Canny
from animatediff_core.jobs.records import Adapter
from animatediff_core.media.atomic import atomic_folder, write_text
from animatediff_core.runs.train import _peak_memory
from animatediff_core.training.stages.controlnet import edge_condition, paired_condition
from animatediff_core.training.stages.ip_adapter import clip_condition
from cli import render
from cli.app import app
from cli.options import adapters

WITHOUT_POSIX = """
import builtins, importlib, pkgutil
original = builtins.__import__
def guarded(name, globals=None, *rest, **more):
    importer = str((globals or {}).get("__name__"))
    if importer.startswith(("animatediff_core", "cli.")):  # libraries ask for the system
        if name in {"resource", "fcntl", "pwd", "grp", "termios", "tty", "pty"}:
            raise ModuleNotFoundError(f"{name} in {importer}")
    return original(name, globals, *rest, **more)
builtins.__import__ = guarded
for package in ("animatediff_core", "cli"):
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        if not module.name.endswith(("__main__", ".kernels", "norm_kernels")):  # triton
            importlib.import_module(module.name)
"""


def pairs_of(folder):
    return paired_condition(folder, (8, 8))


def test_every_module_is_imported_without_the_modules_of_posix():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "condition", [lambda _: edge_condition(Canny()), lambda _: clip_condition(8), pairs_of]
)
def test_conditions_reach_workers_that_are_spawned(tmp_path, condition):
    assert pickle.loads(pickle.dumps(condition(tmp_path)))


@pytest.mark.parametrize(
    ("platform", "resource", "expected"),
    [("linux", 3, 3072), ("darwin", 3, 3), ("win32", None, 5)],
)
def test_peak_memory_is_bytes(monkeypatch, platform, resource, expected):
    usage = SimpleNamespace(ru_maxrss=resource)
    module = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda _: usage) if resource else None
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=5))
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(psutil, "Process", lambda: process)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "resource", module)
    assert _peak_memory() == expected


@pytest.mark.parametrize(
    ("text", "path", "scale"),
    [
        (r"C:\models\x.safetensors:0.8", r"C:\models\x.safetensors", 0.8),
        (r"C:\models\x.safetensors", r"C:\models\x.safetensors", 1.0),
        ("C:/models/x.safetensors", "C:/models/x.safetensors", 1.0),
        (r"\\host\models\x.safetensors:-1", r"\\host\models\x.safetensors", -1.0),
    ],
)
def test_a_drive_is_no_scale(text, path, scale):
    assert adapters([text]) == (Adapter(path=path, scale=scale),)


@pytest.mark.parametrize(
    "name", ["con", "NUL", "com1.x", "a/aux/b", "lpt9 .x", "'a. '", "'a.'", "{name}"]
)
def test_names_that_windows_rejects(tmp_path, name):
    file = tmp_path / "p.yaml"
    write_text(file, f"jobs: [{{name: prn, prompt: a, output: {{name: '{name.strip(chr(39))}'}}}}]")
    with pytest.raises(PromptFileError, match="without names that Windows rejects"):
        load_prompt_file(file)


def test_a_folder_takes_the_name_of_an_empty_one(tmp_path, monkeypatch):
    """On Windows nothing is renamed over a folder."""
    rename = os.rename

    def on_windows(source, target):
        assert not target.exists()
        rename(source, target)

    monkeypatch.setattr(os, "rename", on_windows)
    (tmp_path / "clip").mkdir()
    with atomic_folder(tmp_path / "clip") as folder:
        write_text(folder / "a", "x")
    assert (tmp_path / "clip" / "a").read_text("utf-8") == "x"


def test_a_file_that_is_open_on_windows_is_one_sentence(tmp_path, monkeypatch):
    def locked(*_):
        raise PermissionError(errno.EACCES, "Access is denied")

    monkeypatch.setattr(os, "replace", locked)
    with pytest.raises(MachineError, match="close the program that has it open"):
        write_text(tmp_path / "a", "x")
    assert not list(tmp_path.iterdir())


def test_ctrl_break_ends_a_run_as_ctrl_c_does(asked, monkeypatch):
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGUSR1, raising=False)
    monkeypatch.setattr(
        "cli.render.configure", lambda **_: signal.raise_signal(signal.SIGUSR1), raising=True
    )
    assert asked("generate", "--prompt", "x", "--dry-run").exit_code == 143


class Output(io.TextIOWrapper):
    """stdout on a file descriptor of its own."""

    def __init__(self, number: int, encoding: str = "utf-8") -> None:
        super().__init__(io.FileIO(number, "wb"), encoding=encoding)


def test_a_result_goes_to_a_console_of_any_encoding(monkeypatch):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", stdout)
    command = typer.main.get_command(app)
    with pytest.raises(SystemExit):
        command.main(["inspect", "nothing-here"], standalone_mode=False)
    render.result("outputs/猫-1.gif")
    assert stdout.buffer.getvalue() == b"outputs/\\u732b-1.gif\n".replace(
        b"\n", os.linesep.encode()
    )


def test_results_go_on_without_their_reader(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr(sys, "stdout", Output(write))
    render.result("a.gif")
    render.result("b.gif")
    sys.stdout.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_stdout_ends_the_run(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Output(os.open("/dev/full", os.O_WRONLY)))
    with pytest.raises(MachineError, match=r"stdout: cannot be written \(No space left"):
        render.result("a.gif")
    sys.stdout.close()


def test_a_closed_stdin_is_one_sentence(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(PromptFileError, match="standard input: is closed; give a prompt file"):
        load_prompt_file("-")
