"""Small wrong changes of the code, each with the tests that must notice it (`make mutants`).

A table a room. A change is data: a file, a text that the file holds exactly once, what stands in
its place, and the test files or tests that fail then.
"""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One wrong change."""

    room: str
    """Name of its table."""
    file: str
    """Relative to the repository."""
    old: str
    new: str
    tests: tuple[str, ...]
    """Arguments of pytest, relative to the repository."""

    def __str__(self) -> str:
        old, new = (" ".join(text.split()) for text in (self.old, self.new))
        return f"{self.file}: {old!r} -> {new!r}"

    def fault(self, root: Path = ROOT) -> str | None:
        """Why it cannot be applied, or None."""
        path = root / self.file
        if not path.is_file():
            return "no such file"
        count = path.read_text("utf-8").count(self.old)
        if count != 1:
            return f"its text stands {count} times in the file"
        return "it changes nothing" if self.old == self.new else None

    def mutated(self, root: Path) -> str:
        """The file's text with the change."""
        return (root / self.file).read_text("utf-8").replace(self.old, self.new)


Table = dict[tuple[str, str], list[tuple[str, str]]]
"""(file below animatediff_core or cli, names of tests) -> pairs of old and new text.

`noise text::test_x` names tests/test_noise.py and one test of tests/test_text.py.
"""


def all_mutants() -> list[Mutant]:
    """The mutants of every table, in the order of the tables' names."""
    found = []
    for module in iter_modules([str(Path(__file__).parent)]):
        if not module.name.startswith("_"):
            found += _rows(module.name, import_module(f".{module.name}", __name__).MUTANTS)
    return found


def _rows(room: str, table: Table) -> list[Mutant]:
    return [
        Mutant(room=room, file=_file(file), old=old, new=new, tests=_arguments(tests))
        for (file, tests), changes in table.items()
        for old, new in changes
    ]


def _file(name: str) -> str:
    return name if name.startswith("cli/") else f"animatediff_core/{name}"


def _arguments(tests: str) -> tuple[str, ...]:
    found = []
    for name in tests.split():
        file, _, test = name.partition("::")
        found.append(f"tests/test_{file}.py" + (f"::{test}" if test else ""))
    return tuple(found)
