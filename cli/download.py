"""`animatediff download`: fetch presets' models once, for runs without a network."""

from typing import Annotated, Any

import typer

from animatediff_core.errors import AnimateDiffError

from . import options, render
from .deferred import importing


@options.of_job("variant")
def download(
    presets: Annotated[list[str], typer.Argument(help="Names of presets (see inspect --presets).")],
    settings: Any = None,
    offline: options.Offline = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Fetch all files of presets, so that `generate --offline` finds them; prints their paths.

    A download that was interrupted goes on where it stopped. With --offline, it says what is here.
    """
    render.configure(quiet=quiet, as_json=json, debug=debug)
    options.go_offline(offline)
    with importing():
        from animatediff_core.runs.download import Missing, run

    failed: list[AnimateDiffError] = []
    for one in run(presets, variant=settings.get("variant"), offline=offline):
        if isinstance(one, Missing):
            failed.append(one.error)
            render.error(f"{one.preset}: {one.error}")
            continue
        files = [{"role": role, "path": str(path)} for role, path in one.files]
        paths = {role: str(path) for role, path in one.files if role in ("base", "motion")}
        render.result(
            "\n".join(file["path"] for file in files),
            {"preset": one.preset, **paths, "files": files},
        )
    if failed:
        raise SystemExit(max(error.exit_code for error in failed))
