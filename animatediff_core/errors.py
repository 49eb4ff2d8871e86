"""Errors that are meant for the user, each with the exit code of the command line.

A message says where, what was wrong with the value, and what would work. It is shown without a
stack trace, so it must be enough on its own.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from traceback import format_exception

_LONGEST = 500
"""Characters of a message; of a longer one, the middle is left out."""
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What moves a terminal's cursor or turns its text around, and halves of characters."""


def printable(text: str) -> str:
    """A message without control characters, and not too long."""
    shown = _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)
    head = _LONGEST * 3 // 5
    tail = _LONGEST - head - len(" ... ")
    return shown if len(shown) <= _LONGEST else f"{shown[:head]} ... {shown[-tail:]}"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a request."""

    message: str
    key: str = ""
    """The setting, as in a prompt file: `loras[0].path`; empty if there is none."""
    where: str = ""
    """The file and the job: `p.yaml: jobs[3] "knight"`; empty if there is none."""

    def __str__(self) -> str:
        parts = (self.where, self.key, self.message)
        return printable(": ".join(part for part in parts if part))

    def below(self, key: str) -> "Problem":
        """The problem as seen from the record that has this one under `key`."""
        dot = "." if key and self.key and not self.key.startswith("[") else ""
        return replace(self, key=f"{key}{dot}{self.key}")


class AnimateDiffError(Exception):
    """Base of every error that is meant for the user: one problem, or several found together."""

    exit_code = 2
    """2 the request is wrong, found before anything ran; 3 the environment failed the run."""

    def __init__(self, message: str | Sequence[Problem]) -> None:
        super().__init__(message)
        self.problems = [Problem(message)] if isinstance(message, str) else list(message)

    def __str__(self) -> str:
        return "\n".join(dict.fromkeys(map(str, self.problems)))


Check = tuple[str, Callable[[], object]]
"""The key of a setting, and a call that raises if the setting cannot work."""


@contextmanager
def at(key: str) -> Iterator[None]:
    """Errors raised inside name this setting: `with at("loras[0]"), at("path"): ...`."""
    try:
        yield
    except AnimateDiffError as error:
        error.problems = [problem.below(key) for problem in error.problems]
        raise


class Problems:
    """Collects the errors of several checks, so that all of them are reported at once."""

    def __init__(self) -> None:
        self.errors: list[AnimateDiffError] = []

    def add(self, *problems: Problem) -> None:
        """Problems of a prompt file."""
        self.errors += [PromptFileError([problem]) for problem in problems]

    @contextmanager
    def collecting(self, where: str = "") -> Iterator[None]:
        """Collects an error raised inside, with `where` in front of it."""
        try:
            yield
        except AnimateDiffError as error:
            if where:
                error.problems = [replace(one, where=where) for one in error.problems]
            self.errors.append(error)

    def run(self, checks: Iterable[Check], where: str = "") -> None:
        """Make every check; each has the key of its setting."""
        for key, check in checks:
            with self.collecting(where), at(key):
                check()

    @property
    def found(self) -> list[Problem]:
        """All problems so far."""
        return [problem for error in self.errors for problem in error.problems]

    def check(self) -> None:
        """Raise one error for all problems, of the class with the highest exit code, or none."""
        if self.errors:
            worst = max(self.errors, key=lambda error: error.exit_code)
            raise type(worst)(self.found)


class PromptFileError(AnimateDiffError):
    """A prompt file, preset or job that cannot be run as written."""


class CheckpointError(AnimateDiffError):
    """A weight file that is missing, broken, of another kind or family, or does not fit."""


class TrainingError(AnimateDiffError):
    """A training configuration or data set that cannot be used."""


class MediaError(AnimateDiffError):
    """A video or image that cannot be read or written."""


class ClipError(AnimateDiffError):
    """A clip that came out broken: no numbers, one flat colour, no motion, frames missing."""


class UnexpectedError(AnimateDiffError):
    """An error that no check foresaw, in one job: a bug of the program or of a library."""

    exit_code = 1
    stack: str = ""
    """The traceback, as text: the error itself would hold the model in memory."""

    @classmethod
    def of(cls, error: Exception, name: str) -> "UnexpectedError":
        """The failure of the job of this name."""
        first = str(error).strip().partition("\n")[0]
        made = cls(
            f"{name}: {type(error).__name__}: {first}; this is a bug: please open an issue in the "
            "project's repository, with the output of --debug"
        )
        made.stack = "".join(format_exception(error))
        return made


class MachineError(AnimateDiffError):
    """The environment failed, not the request: memory, disk or network."""

    exit_code = 3
