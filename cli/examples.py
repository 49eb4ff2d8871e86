"""`animatediff examples`: prompt files and small training sets to start from."""

from pathlib import Path
from typing import Annotated

import typer

from . import options, render
from .deferred import importing


def examples(
    folder: Annotated[Path, typer.Argument(help="Folder to write; must be new or empty.")],
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Write prompt files and two small training sets that run on a CPU; prints their paths."""
    render.configure(quiet=quiet, as_json=json, debug=debug)
    with importing():
        from animatediff_core.tiny.examples import write_examples

    for path in write_examples(folder):
        render.result(str(path), {"path": str(path)})
