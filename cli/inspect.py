"""`animatediff inspect`: what is this file, and where does it go?"""

from pathlib import Path
from typing import Annotated

import typer

from animatediff_core.errors import AnimateDiffError
from animatediff_core.jobs import load_preset, preset_names

from . import options, render


def inspect(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Weight files or model folders.")
    ] = None,
    presets: Annotated[bool, typer.Option("--presets", help="List the presets.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Say of each file its kind, family, version and where it goes in a prompt file."""
    render.configure(quiet=quiet, as_json=json, debug=debug)
    if presets:
        for name in preset_names():
            settings = load_preset(name)
            render.result(f"{name}: {settings['about']}", {"name": name, **settings})
    if not files:
        if presets:
            return
        raise AnimateDiffError("nothing to do; name a weight file, or ask for --presets")
    from animatediff_core.runs.inspect import run

    failed: list[AnimateDiffError] = []
    for file, report in run(files):
        if isinstance(report, AnimateDiffError):
            failed.append(report)
            render.error(str(report))
            continue
        version = f" {report.version}" if report.version else ""
        details = "; ".join(f"{key} {value}" for key, value in report.details.items())
        render.result(
            f"{file}: {report.kind}{version} for {report.family}; goes in {report.goes_in}"
            + (f"; {details}" if details else ""),
            {"path": str(file), "kind": report.kind, "family": report.family,
             "version": report.version, "goes_in": report.goes_in, **report.details},
        )  # fmt: skip
    if failed:
        raise SystemExit(max(error.exit_code for error in failed))
