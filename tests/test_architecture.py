"""The house keeps its shape: one direction of imports, and quick help."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from setuptools.config.pyprojecttoml import read_configuration

ROOT = Path(__file__).parent.parent
BELOW = {
    "cli": {"runs", "checkpoints", "training", "jobs", "errors", "media"},
    "tiny": {"runs", "training", "diffusion", "checkpoints", "motion", "media", "jobs", "errors"},
    "runs": {"speed", "training", "diffusion", "checkpoints", "motion", "media", "jobs", "errors"},
    "speed": {"diffusion", "checkpoints", "motion", "errors"},
    "training": {"diffusion", "checkpoints", "motion", "media", "jobs", "errors"},
    "diffusion": {"checkpoints", "motion", "jobs", "errors"},
    "checkpoints": {"motion", "media", "jobs", "errors"},
    "motion": {"errors"},
    "media": {"errors"},
    "jobs": {"errors"},
}
"""For each room, the rooms that it may import."""
LIGHT = ("jobs", "media/atomic.py", "errors.py")


def imports(path: Path) -> set[str]:
    """Rooms of the core that a file imports, besides its own."""
    rooms = set()
    depth = len(path.relative_to(ROOT / "animatediff_core").parts) if "cli" not in path.parts else 0
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 2 and depth == 2:
            rooms |= {node.module.split(".")[0]} if node.module else {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "animatediff_core."
        ):
            rooms.add(node.module.split(".")[1])
    return rooms


@pytest.mark.parametrize("room", BELOW)
def test_imports_run_in_one_direction(room):
    folder = ROOT / room if room == "cli" else ROOT / "animatediff_core" / room
    files = sorted(folder.rglob("*.py"))
    assert files
    for file in files:
        assert imports(file) - {room} <= BELOW[room], file


@pytest.mark.parametrize("name", ["torch", "diffusers", "typer", "rich"])
def test_jobs_and_errors_import_nothing_heavy(name):
    for light in LIGHT:
        path = ROOT / "animatediff_core" / light
        for file in [path] if path.is_file() else path.rglob("*.py"):
            tree = ast.parse(file.read_text())
            found = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
            found |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
            assert not any(f.split(".")[0] == name for f in found), file


@pytest.mark.parametrize(
    "command", [[], ["generate"], ["inject"], ["train"], ["inspect"], ["download"]]
)
def test_help_imports_no_torch(command):
    code = (
        "import sys; from typer.testing import CliRunner; from cli.app import app;"
        f"result = CliRunner().invoke(app, {[*command, '--help']!r});"
        "assert result.exit_code == 0, result.output; assert 'Usage' in result.output;"
        "assert 'torch' not in sys.modules and 'diffusers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_command_leaves_alone_what_it_does_not_use_and_others_still_can():
    code = (
        "import sys; from typer.testing import CliRunner; from cli.app import app;"
        "asked = ['generate', '--prompt', 'x', '--dry-run', '--offline'];"
        "assert CliRunner().invoke(app, asked).exit_code == 0;"
        "import animatediff_core.runs.generate;"
        "inner = ('scipy.stats._distn_infrastructure', 'scipy.optimize._optimize',"
        " 'diffusers.models.transformers.transformer_flux', 'torch._dynamo.utils', 'av.container');"
        "assert not any(one in sys.modules for one in inner);"
        "from scipy.optimize import linear_sum_assignment as assign;"
        "assert list(assign([[1, 0], [0, 1]])[1]) == [1, 0];"
        "import scipy.stats; assert scipy.stats.norm.cdf(0) == 0.5;"
        "import av; assert av.VideoFrame(2, 2, 'rgb24').width == 2;"
        "from transformers import models; assert models.BertConfig().model_type == 'bert';"
        "assert models.bert.BertConfig is models.BertConfig;"
        "from diffusers.models.transformers import FluxTransformer2DModel as Flux;"
        "from diffusers.models import FluxTransformer2DModel;"
        "assert FluxTransformer2DModel is Flux;"
        "import torch; twice = torch.compile(lambda x: 2 * x, backend='eager');"
        "assert twice(torch.ones(1)) == 2;"
        "assert all(one in sys.modules for one in inner)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_wheel_has_every_package():
    settings = read_configuration(ROOT / "pyproject.toml")["tool"]["setuptools"]
    files = [file for top in ("cli", "animatediff_core") for file in (ROOT / top).rglob("*.py")]
    folders = {".".join(file.parent.relative_to(ROOT).parts) for file in files}
    assert set(settings["packages"]) == folders
