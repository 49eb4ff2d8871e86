"""The reference pages, made from the declarations: `make settings` writes them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from typer.main import get_command

from animatediff_core.jobs import Job, prompt_schema, reference
from animatediff_core.training.config import TrainConfig
from cli.app import app
from cli.options import ALIASES

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "settings.md"
COMMANDS = DOCS / "commands.md"
_FILE_KEYS = ("preset", "extends", "matrix", "defaults", "jobs", "made_with")
_KINDS = {str: "text", int: "whole number", float: "number"}
_OWN = "[Job](#job)"
_VALUES = {
    "preset": "a name", "extends": "a path", "matrix": "a mapping of settings to lists of values",
    "defaults": f"settings of {_OWN}", "jobs": f"a list of {_OWN}, each with `matrix` if need be",
    "made_with": "a mapping",
}  # fmt: skip


def text() -> str:
    """The page of all settings: keys of a prompt file, of a job, of a training file."""
    keys = prompt_schema()["properties"]
    rows = [
        f"| `{key}` | {_VALUES[key]} | {keys[key].get('description') or _first_of(keys[key])} |"
        for key in _FILE_KEYS
    ]
    top = [
        "## Prompt file", "",
        f"The keys of a prompt file. Settings of its model, `base` to `embeddings` of {_OWN}, may "
        "stand beside them. Short forms and examples: [Prompt files](prompt-files.md).", "",
        "| key | value | meaning |", "|---|---|---|", *rows, "",
    ]  # fmt: skip
    return reference(Job, TrainConfig).replace(
        "# Settings\n\n", "# Settings\n\n" + "\n".join(top) + "\n", 1
    )


def _first_of(schema: dict[str, Any]) -> str:
    return str(schema["anyOf"][0]["description"])


def commands() -> str:
    """The page of all commands and their options."""
    lines = [
        "# Commands", "",
        "`animatediff COMMAND --help` prints the same. [Settings](settings.md) has the full text "
        "of each setting, [JSON and exit codes](json.md) what scripts read.", "",
        "Other programs' names work too: "
        + ", ".join(f"`{name}` for `{own}`" for name, own in ALIASES.items()) + ".", "",
    ]  # fmt: skip
    for name, command in sorted(get_command(app).commands.items()):
        lines += [f"## {name}", "", " ".join((command.help or "").split()), ""]
        panels: dict[str, list[str]] = {}
        for one in command.params:
            panel = getattr(one, "rich_help_panel", None) or f"{one.param_type_name}s".capitalize()
            panels.setdefault(panel, []).append(_row(one))
        for panel, rows in panels.items():
            lines += [
                f"**{panel}**",
                "",
                "| option | value | meaning |",
                "|---|---|---|",
                *rows,
                "",
            ]
    return "\n".join(lines)


def _row(parameter: Any) -> str:
    names = ", ".join(f"`{one}`" for one in sorted(parameter.opts, key=len))
    argument = parameter.param_type_name == "argument"
    if argument:
        names = f"`{parameter.name.upper()}`"
    flag = getattr(parameter, "is_flag", False)
    kind = parameter.type_descriptor.annotation
    kind = get_args(kind)[0] if get_origin(kind) is list else kind
    value = "" if flag else parameter.metavar or _KINDS.get(kind, kind.__name__.lower())
    value = f"`{value}`" if parameter.metavar else value
    value += ", one or more" if parameter.nargs == -1 else ""
    value += " (required)" if argument and parameter.required else ""
    meaning = " ".join((parameter.help or "").split()).replace("|", "\\|")
    if parameter.default not in (None, False, ()) and not callable(parameter.default):
        meaning += f" Default: `{parameter.default}`."
    return f"| {names} | {value} | {meaning} |"


PAGES = {PAGE: text, COMMANDS: commands}


def write() -> Iterator[Path]:
    """Write every page."""
    for page, made in PAGES.items():
        page.write_text(made(), "utf-8")
        yield page


if __name__ == "__main__":
    list(write())
