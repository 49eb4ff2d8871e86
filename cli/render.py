"""Everything that a person or script sees: results on stdout, all else on stderr.

The only rich Console of the project. Without a terminal there are no progress bars; with --quiet
there is nothing but errors and results.
"""

import errno
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from animatediff_core.errors import MachineError, printable

console = Console(stderr=True, highlight=False, markup=False, emoji=False)


@dataclass
class Settings:
    """How talkative this run is; set once by the command that runs."""

    quiet: bool = False
    json: bool = False
    debug: bool = False


settings = Settings()
_bars: list[Progress] = []
"""The bars on the terminal."""


def configure(*, quiet: bool = False, as_json: bool = False, debug: bool = False) -> None:
    """Set what the options of a command say, and send the core's warnings to stderr."""
    settings.quiet, settings.json, settings.debug = quiet, as_json, debug
    level = logging.DEBUG if debug else (logging.ERROR if quiet else logging.WARNING)
    logger = logging.getLogger("animatediff_core")
    logger.handlers = [_Handler()]
    logger.setLevel(level)
    if not debug:  # diffusers, not imported yet, warns of what is done on purpose
        os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    if quiet or not console.is_terminal:  # read by huggingface_hub, which is not imported yet
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        note(printable(f"{record.levelname.lower()}: {record.getMessage()}"), always=True)


def error(message: str) -> None:
    """Say what went wrong, also when quiet."""
    for line in message.splitlines():
        console.print(f"error: {line}", style="red", soft_wrap=True)


def note(message: str, *, always: bool = False) -> None:
    """Tell a person at a terminal something that no script needs; `always`: logs too."""
    if always or (console.is_terminal and not settings.quiet):
        console.print(message, soft_wrap=True)


def at_terminal() -> bool:
    """Whether a person reads the results."""
    return sys.stdout.isatty() and not settings.json


def result(text: str, record: Mapping[str, object] | None = None) -> None:
    """One result line on stdout: the text, or with --json the record."""
    line = json.dumps(record) if settings.json and record is not None else text
    if _bars and sys.stdout.isatty():  # the bars are on the same terminal: above them
        console.out(line, highlight=False)
    else:
        _written(line)


def _written(line: str) -> None:
    """Write a line to stdout. If its reader has gone, the run goes on and writes no more lines."""
    try:
        typer.echo(line)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno not in (errno.EPIPE, errno.EINVAL):  # Windows says EINVAL
            raise MachineError(f"stdout: cannot be written ({error.strerror})") from error


def table(title: str, widths: Mapping[str, int], rows: Sequence[Sequence[object]]) -> None:
    """A table on stderr, with columns of these widths; long texts end in an ellipsis."""
    if settings.quiet or settings.json:
        return
    drawn = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column, width in widths.items():
        drawn.add_column(column, no_wrap=True, overflow="ellipsis", max_width=width)
    for row in rows:
        drawn.add_row(*(Text(str(value)) for value in row))
    console.print(drawn)


@contextmanager
def above(bars: Progress) -> Iterator[None]:
    """Print results above these bars, if they share the terminal with stdout."""
    _bars.append(bars)
    try:
        yield
    finally:
        _bars.pop()
