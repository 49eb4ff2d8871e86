"""The documentation: navigation, links, images, and what pages quote from the program."""

import ast
import json
import re
import runpy
import shlex
import sys
from pathlib import Path
from textwrap import dedent, indent

import pytest
import settings_page
import yaml
from conftest import ROOT
from setuptools.config.pyprojecttoml import read_configuration
from typer.main import get_command

from animatediff_core.errors import AnimateDiffError
from animatediff_core.jobs import job_from_options, parse_prompts
from cli import render
from cli.app import app
from cli.generate import _tell

DOCS = ROOT / "docs"
NAVIGATION = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]
PAGES = sorted(
    [*DOCS.glob("*.md"), *ROOT.glob("*.md"), ROOT / "animatediff_core/models/tiny/README.md"]
)
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)#?([^)\s]*)\)")


def named(entries) -> list[str]:
    """The files of a navigation, in order."""
    if isinstance(entries, str):
        return [entries]
    values = entries.values() if isinstance(entries, dict) else entries
    return [name for one in values for name in named(one)]


def anchors(page: Path) -> set[str]:
    """Anchors of the headings, as GitHub and mkdocs make them."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_is_in_the_navigation_once():
    files = ["index.md" if page == ROOT / "README.md" else page for page in PAGES]
    site = [
        file if isinstance(file, str)
        else file.name if file.parent == DOCS
        else f"repository/{file.relative_to(ROOT).as_posix()}"
        for file in files
    ]  # fmt: skip
    assert sorted(named(NAVIGATION)) == sorted(site)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_and_image_of_a_page_exists(page):
    for target, anchor in LINK.findall(page.read_text("utf-8")):
        file = (page.parent / target).resolve() if target else page
        assert file.is_file(), target
        assert file.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


@pytest.mark.parametrize("page", settings_page.PAGES, ids=lambda page: page.name)
def test_reference_pages_are_current(page):
    assert page.read_text("utf-8") == settings_page.PAGES[page](), "run `make settings`"


def test_messages_of_the_troubleshooting_page_are_the_programs_own():
    sources = [file.read_text("utf-8") for top in ("cli", "animatediff_core")
               for file in sorted((ROOT / top).rglob("*.py"))]  # fmt: skip
    text = re.sub(r'"\s*\n\s*[fr]?"', "", "\n".join(sources))
    text = re.sub(r"\{[^{}\n]*\}|%s|%d", "…", text).replace("\\\\", "\\")
    page = (DOCS / "troubleshooting.md").read_text("utf-8")
    messages = re.findall(r"^\| `([^`]+)` \|", page, flags=re.M)
    assert len(messages) > 40
    parts = [part for message in messages for part in message.split("…") if len(part) > 3]
    assert [part for part in parts if part not in text] == []


def test_the_json_of_generate_has_the_documented_keys(capsys, monkeypatch):
    from animatediff_core.runs.generate import Result

    monkeypatch.setattr(render.settings, "json", True)
    job = job_from_options({"prompt": "a ball", "name": "ball", "seed": 1})[0]
    _tell(Result(job, Path("outputs/ball-1.gif"), None, None), [])
    _tell(Result(job, None, None, AnimateDiffError("no memory")), [])
    made, failed = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    page = (DOCS / "json.md").read_text("utf-8")
    assert json.dumps(made) in page
    assert failed == {"name": "ball", "seed": 1, "path": None, "error": "no memory"}


def test_samplers_of_other_programs_have_the_documented_names():
    from animatediff_core.diffusion.samplers import plain_name

    _, _, table = (DOCS / "migrating.md").read_text("utf-8").partition("\n## Samplers\n")
    rows = [row for row in table.partition("\n## ")[0].splitlines() if row.startswith("| ")]
    names = [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[3])]
    assert len(names) > 15
    assert [name for name in names if plain_name(name) != name] == ["plms"]


def json_keys(file: Path) -> set[str]:
    """Keys of the records that a command prints with --json."""
    nodes = list(ast.walk(ast.parse(file.read_text("utf-8"))))
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    printed = [call for call in calls if ast.unparse(call.func) == "render.result"]
    printed += [
        node.value for node in nodes if isinstance(node, ast.Assign | ast.AnnAssign) and node.value
        if ast.unparse(getattr(node, "target", None) or node.targets[0]) in ("record", "paths")
    ]  # fmt: skip
    dicts = [one for node in printed for one in ast.walk(node) if isinstance(one, ast.Dict)]
    return {key.value for one in dicts for key in one.keys if isinstance(key, ast.Constant)}


@pytest.mark.parametrize("file", sorted((ROOT / "cli").glob("*.py")), ids=lambda file: file.stem)
def test_every_json_key_is_documented(file):
    page = (DOCS / "json.md").read_text("utf-8")
    assert {key for key in json_keys(file) if f"`{key}`" not in page} == set()


def test_the_keys_of_a_dry_run_are_found():
    assert json_keys(ROOT / "cli" / "generate.py") == {
        "error", "memory", "motion", "name", "path", "seed",
    }  # fmt: skip


def commands(text: str) -> list[list[str]]:
    """The arguments of each animatediff command in a page's blocks."""
    blocks = re.findall(r"^ *```(?:sh|console)\n(.*?)^ *```", text, flags=re.S | re.M)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    plain = [re.sub(r"^\$ |^[A-Z_]+=\S+ | >.*| 2>.*", "", line) for line in lines]
    words = [shlex.split(line, comments=True) for line in plain]
    return [one[1:] for one in words if one[:1] == ["animatediff"]]


def test_the_command_line_reads_every_command_of_the_documents():
    program, known = get_command(app), 0
    for page in PAGES:
        for name, *arguments in commands(page.read_text("utf-8")):
            program.commands[name].make_context(name, arguments)
            known += 1
    assert known > 40


def yaml_blocks(page: Path) -> list[str]:
    blocks = re.findall(r"^( *```yaml\n.*?)^ *```", page.read_text("utf-8"), flags=re.S | re.M)
    return [dedent(block).partition("\n")[2] for block in blocks]


@pytest.mark.parametrize("page", [*filter(yaml_blocks, PAGES)], ids=lambda page: page.stem)
def test_every_yaml_block_is_read(page, tmp_path):
    """Prompt files, training files, and fragments, which are settings of a job one by one."""
    from animatediff_core.training.config_file import load_train_config

    (tmp_path / "other.yaml").write_text("jobs: [x]")
    for block in yaml_blocks(page):
        if "stage:" in block:
            (tmp_path / "training.yaml").write_text(block)
            load_train_config(tmp_path / "training.yaml")
            continue
        whole = "jobs:" in block
        for one in [block] if whole else re.split(r"\n(?=\w)", block):
            file_key = one.startswith(("preset", "matrix"))
            above = "" if whole or file_key else "defaults:\n"
            text = above + indent(one, " " if above else "") + ("" if whole else "\njobs: [x]")
            assert parse_prompts(text, page.name, tmp_path)


@pytest.mark.slow
def test_the_walk_of_the_readme_runs_as_printed(command):
    _, _, text = (ROOT / "README.md").read_text("utf-8").partition("## Train, inject, generate")
    printed = commands(text.partition("\n## ")[0])
    assert [name for name, *_ in printed] == ["examples", "train", "inject", "generate"]
    for arguments in printed:
        done = command(*arguments)
        assert done.returncode == 0, done.stderr


def test_the_program_runs_as_a_module(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["animatediff", "--version"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("animatediff_core", run_name="__main__")
    assert (end.value.code, capsys.readouterr().out) == (0, "animatediff 0.1.0\n")


def test_a_wheel_carries_every_example_file():
    packed = read_configuration(ROOT / "pyproject.toml")["tool"]["setuptools"]["data-files"]
    files = {ROOT / file for _, files in packed for file in files}
    assert files == {file for file in (ROOT / "prompts").rglob("*") if file.is_file()}


def test_examples_are_written_into_a_new_folder(tmp_path, monkeypatch):
    from animatediff_core.tiny import examples
    from animatediff_core.training.clips import list_clips
    from animatediff_core.training.config_file import load_train_config

    monkeypatch.setattr(examples, "CLIPS", 1)
    monkeypatch.setattr(examples, "IMAGES", 1)
    folder = tmp_path / "examples"
    assert [path.name for path in examples.write_examples(folder)] == [
        "prompts", "motion.yaml", "lora.yaml",
    ]  # fmt: skip
    for name in ("motion.yaml", "lora.yaml"):
        assert len(list_clips(load_train_config(folder / name))) == 1
    assert (folder / "prompts" / "images" / "first.png").is_file()
    with pytest.raises(AnimateDiffError, match="examples: is not empty; name a new folder"):
        list(examples.write_examples(folder))
