"""The Typer app, and the one place where an error becomes a message and an exit code."""

import io
import os
import signal
import sys
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from animatediff_core.errors import AnimateDiffError

from . import render
from .deferred import defer_imports
from .options import without_aliases

INTERRUPTED = 130
TERMINATED = 143


class _Help:
    """The help option, for which the help shows no type either."""

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)  # type: ignore[misc]
        option.metavar = ""
        return option


class _Command(_Help, TyperCommand):
    """A command of the app, which takes the names of options of other programs too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {name for one in self.get_params(ctx) for name in one.opts}
        return super().parse_args(ctx, without_aliases(args, known))


class _Group(_Help, TyperGroup):
    """Turns errors of the core into one message and their exit code, also under CliRunner."""

    def invoke(self, ctx: Any) -> Any:
        names = {"SIGTERM", "SIGBREAK"} & set(dir(signal))  # Windows has Ctrl-Break
        previous = {name: signal.signal(getattr(signal, name), _terminate) for name in names}
        if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except AnimateDiffError as error:
            if render.settings.debug:
                raise
            render.error(str(error))
            raise SystemExit(error.exit_code) from error
        except KeyboardInterrupt:
            render.error("interrupted; nothing is half-written")
            raise SystemExit(INTERRUPTED) from None
        except BrokenPipeError:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            raise SystemExit(0) from None
        finally:
            for name, handler in previous.items():
                signal.signal(getattr(signal, name), handler)


def _terminate(number: int, frame: object) -> NoReturn:
    raise SystemExit(TERMINATED)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Turn any Stable Diffusion model into an animation generator.",
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"animatediff {version('animatediff')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", metavar="", callback=_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Turn any Stable Diffusion model into an animation generator."""


def _register() -> None:
    from . import download, examples, generate, inject, inspect, train

    app.command(cls=_Command)(generate.generate)
    app.command(cls=_Command)(inject.inject)
    app.command(cls=_Command)(train.train)
    app.command(cls=_Command)(inspect.inspect)
    app.command(cls=_Command)(download.download)
    app.command(cls=_Command)(examples.examples)


_register()
defer_imports()

if __name__ == "__main__":
    app()
