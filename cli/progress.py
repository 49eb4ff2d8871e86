"""Progress of a run at a terminal: the whole run with the time left, and the stage of its job."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column

from . import render


@contextmanager
def bars() -> Iterator[Progress]:
    """Bars of at most 80 columns on a terminal, nothing elsewhere."""
    shown = Progress(
        TextColumn(
            "{task.description}",
            table_column=Column(width=40, no_wrap=True, overflow="ellipsis"),
            markup=False,
        ),
        BarColumn(bar_width=20),
        TimeRemainingColumn(compact=True),
        console=render.console,
        transient=True,
        redirect_stdout=False,
        speed_estimate_period=3600,
        disable=render.settings.quiet or not render.console.is_terminal,
    )
    with shown, render.above(shown):
        yield shown


@dataclass
class RunProgress:
    """The bars of one `generate`: the run, and the job in work."""

    shown: Progress
    jobs: int
    done: int = 0
    job: str = ""

    def __post_init__(self) -> None:
        self.run = self._bar(self.jobs)
        self.stage = self._bar(None)

    def _bar(self, total: int | None) -> TaskID:
        return self.shown.add_task("", total=total)

    def loading(self, source: str) -> None:
        """The model of the next jobs is being loaded."""
        self._show(f"loading {source}", None)

    def step(self, name: str, done: float, steps: int) -> None:
        """A job has done some of its steps; after the last one it is decoded."""
        if name != self.job:
            self.job = name
            self.shown.reset(self.stage, total=steps)
        text = f"step {min(int(done) + 1, steps)} of {steps}" if done < steps else "decoding"
        self._show(text, done, steps)
        self._advance(done / steps)

    def writing(self) -> None:
        """The frames of the job in work are being written."""
        self.job = ""
        self._show("writing", None)

    def finished(self) -> None:
        """A job is over."""
        self.done += 1
        self._advance(0)

    def _advance(self, share: float) -> None:
        number = min(self.done + 1, self.jobs)
        name = f"  {self.job}" if self.job else ""
        self.shown.update(
            self.run,
            description=f"job {number} of {self.jobs}{name}",
            completed=min(self.done + share, self.jobs),
        )

    def _show(self, text: str, done: float | None, total: int | None = None) -> None:
        self.shown.update(self.stage, description=text, completed=done or 0, total=total)
