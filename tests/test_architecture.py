"""The house keeps its shape: one direction of imports, and quick help."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from setuptools.config.pyprojecttoml import read_configuration

ROOT = Path(__file__).parent.parent
ORDER = (
    ("__main__",),
    ("cli",),
    ("tiny",),
    ("runs",),
    ("training",),
    ("sampling",),
    ("planning",),
    ("conditions",),
    ("speed",),
    ("diffusion",),
    ("adapters",),
    ("checkpoints",),
    ("weights",),
    ("motion",),
    ("media",),
    ("jobs",),
    ("errors",),
)
"""The rooms of the core, top to bottom: a file imports its own room and those below it."""
FLOOR = {room: number for number, rooms in enumerate(ORDER) for room in rooms}
LIGHT = ("jobs", "media/atomic.py", "errors.py")
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for top in ("cli", "animatediff_core")
    for path in sorted((ROOT / top).rglob("*.py"))
}


@cache
def tree_of(path: Path) -> ast.Module:
    """The parsed file."""
    return ast.parse(path.read_text())


def room_of(module: str) -> str:
    return module.split(".")[1 if module.startswith("animatediff_core.") else 0]


def imports(module: str, *, in_functions: bool = True) -> set[str]:
    """Modules of the project that a file imports."""
    path, found = FILES[module], set()
    tree = tree_of(path)
    nodes = ast.walk(tree) if in_functions else tree.body
    package = module.split(".") if path.stem == "__init__" else module.split(".")[:-1]
    for node in nodes:
        if not isinstance(node, ast.ImportFrom):
            continue
        base = package[: len(package) - node.level + 1] if node.level else []
        target = ".".join([*base, *([node.module] if node.module else [])])
        found |= {f"{target}.{one.name}" for one in node.names} & FILES.keys()
        if target in FILES and not {f"{target}.{one.name}" for one in node.names} <= FILES.keys():
            found.add(target)
    return found - {module}


@pytest.mark.parametrize("module", sorted(FILES.keys() - {"animatediff_core"}))
def test_imports_run_in_one_direction(module):
    for other in imports(module):
        above, below = FLOOR[room_of(module)], FLOOR[room_of(other)]
        assert room_of(module) == room_of(other) or above < below, other


def test_no_imports_run_in_a_circle():
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, (*path, module)
        if module not in done:
            for other in imports(module) - {"animatediff_core"}:
                visit(other, (*path, module))
            done.add(module)

    for module in FILES.keys() - {"animatediff_core"}:
        visit(module, ())


@pytest.mark.parametrize("name", ["torch", "diffusers", "typer", "rich"])
def test_jobs_and_errors_import_nothing_heavy(name):
    for light in LIGHT:
        path = ROOT / "animatediff_core" / light
        for file in [path] if path.is_file() else path.rglob("*.py"):
            tree = tree_of(file)
            found = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
            found |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
            assert not any(f.split(".")[0] == name for f in found), file


def test_help_imports_no_torch():
    commands = ([], ["generate"], ["inject"], ["train"], ["inspect"], ["download"], ["examples"])
    code = (
        "import sys; from typer.testing import CliRunner; from cli.app import app\n"
        f"for command in {commands!r}:\n"
        "    result = CliRunner().invoke(app, [*command, '--help'])\n"
        "    assert result.exit_code == 0, result.output\n"
        "    assert 'Usage' in result.output\n"
        "    assert 'torch' not in sys.modules and 'diffusers' not in sys.modules, command\n"
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


LEANING = ("The same", "Of ", "As ", "That ", "What ")
"""How first lines of docstrings begin that cannot be read without the ones before them."""
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def first_lines(tree: ast.Module) -> dict[int, str]:
    """The first line of every docstring, and of the text below each field, by line number."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
            found[node.body[0].lineno] = text.splitlines()[0]
    return found


@pytest.mark.parametrize("module", sorted(FILES))
def test_the_first_line_of_a_docstring_stands_alone(module):
    lines = first_lines(tree_of(FILES[module]))
    assert not {number: text for number, text in lines.items() if text.startswith(LEANING)}


@pytest.mark.parametrize("module", sorted(FILES))
def test_files_and_functions_are_short(module):
    text = FILES[module].read_text()
    assert len(text.splitlines()) <= 300
    for node in ast.walk(tree_of(FILES[module])):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 50, node.name


@pytest.mark.parametrize("module", sorted(FILES))
def test_only_tables_of_data_are_formatted_by_hand(module):
    text = FILES[module].read_text()
    tables = {
        number
        for node in tree_of(FILES[module]).body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for number in range(node.lineno, node.end_lineno + 1)
    }
    for number, line in enumerate(text.splitlines(), start=1):
        assert "# fmt:" not in line or number in tables, (number, line)
