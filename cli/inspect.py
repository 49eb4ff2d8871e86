"""`animatediff inspect`: what is this file, and where does it go?"""

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from animatediff_core.errors import AnimateDiffError
from animatediff_core.jobs import Adapter, load_preset, preset_names, prompt_schema

from . import options, render
from .deferred import importing

if TYPE_CHECKING:
    from animatediff_core.checkpoints.file_report import FileReport


def inspect(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Weight files, model folders, clips or prompt files."),
    ] = None,
    presets: Annotated[bool, options.flag("--presets", help="List the presets.")] = False,
    schema: Annotated[
        bool, options.flag("--schema", help="Print a JSON Schema of prompt files, for editors.")
    ] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Say of each file its kind, family, version and where it goes in a prompt file."""
    render.configure(quiet=quiet, as_json=json, debug=debug)
    if presets:
        for name in preset_names():
            settings = load_preset(name)
            render.result(_preset_line(name, settings), {"name": name, **settings})
    if schema:
        render.result(dumps(prompt_schema(), indent=1))
    if not files:
        if presets or schema:
            return
        raise AnimateDiffError("nothing to do; name a weight file, or ask for --presets")
    with importing():
        from animatediff_core.runs.inspect import run

    failed: list[AnimateDiffError] = []
    for file, report in run(files):
        if isinstance(report, AnimateDiffError):
            failed.append(report)
            render.error(str(report))
            continue
        render.result(
            _shown(report),
            {
                **report.details,
                "path": str(file),
                "kind": report.kind,
                "family": report.family,
                "version": report.version,
                "goes_in": report.goes_in,
                "dtype": report.dtype,
                "parameters": report.parameters,
            },
        )
    if failed:
        raise SystemExit(max(error.exit_code for error in failed))


def _shown(report: "FileReport") -> str:
    """One line for a script; at a terminal a title and a row for each fact."""
    version = f" {report.version}" if report.version else ""
    family = "" if report.family == "unknown" else f" for {report.family}"
    title, use = f"{report.kind}{version}{family}", f"goes in {report.goes_in}"
    if report.goes_in in ("nowhere", "generate"):
        use = "cannot be used" if report.goes_in == "nowhere" else "generate makes it"
    facts = {key: value for key, value in report.details.items() if key != "note"}
    if (count := report.parameters) is not None:
        size = f"{count / 1e6:.1f} M" if count >= 1e5 else str(count)
        facts["parameters"] = f"{size} in {report.dtype or 'no dtype'}"
    if "note" in report.details:
        facts["note"] = report.details["note"]
    if not render.at_terminal():
        return "; ".join([f"{report.path}: {title}", use, *(f"{k} {v}" for k, v in facts.items())])
    width = max(map(len, facts), default=0)
    rows = [f"  {key:<{width}}  {value}" for key, value in facts.items()]
    return "\n".join([str(report.path), f"  {title}; {use}", *rows])


def _preset_line(name: str, preset: dict[str, Any]) -> str:
    (start, end, schedule), loras = preset["betas"], preset.get("loras", [])
    version = f" ({preset['motion_version']})" if "motion_version" in preset else ""
    parts = [
        f"base {preset['base']}",
        f"motion {preset['motion']}{version}",
        *(f"lora {one.path}:{one.scale:g}" for one in map(Adapter.model_validate, loras)),
        *(f"embedding {path}" for path in preset.get("embeddings", [])),
        f"scheduler {preset['scheduler']}",
        f"betas {schedule} {start:g} to {end:g}",
        f"{preset['steps']} steps",
        f"guidance {preset['guidance_scale']:g}",
        f"{preset['frames']} frames of {preset['width']} x {preset['height']}",
    ]
    return f"{name}: {preset['about']}; " + "; ".join(parts)
