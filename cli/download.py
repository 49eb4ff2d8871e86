"""`animatediff download`: fetch presets' models once, for runs without a network."""

from typing import Annotated

import typer

from animatediff_core.errors import AnimateDiffError

from . import options, render


def download(
    presets: Annotated[list[str], typer.Argument(help="Names of presets (see inspect --presets).")],
    offline: options.Offline = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Fetch the models of presets, so that `generate --offline` finds them; prints their paths."""
    render.configure(quiet=quiet, as_json=json, debug=debug)
    options.go_offline(offline)
    from animatediff_core.runs.download import run

    failed: list[AnimateDiffError] = []
    for name, there in run(presets, offline=offline):
        if isinstance(there, AnimateDiffError):
            failed.append(there)
            render.error(f"{name}: {there}")
            continue
        base, motion = map(str, there)
        render.result(f"{base}\n{motion}", {"preset": name, "base": base, "motion": motion})
    if failed:
        raise SystemExit(max(error.exit_code for error in failed))
