"""Runs the mutants: `python -m tests.mutants [WORD...]` (those whose room or file has a WORD).

The libraries are imported once. Each mutant then has a process of its own, forked from this one,
and each of the processes that run at a time has a copy of the repository of its own. Prints the
mutants that no test notices; the exit code is 1 if a mutant or its tests cannot be run.
"""

import argparse
import compileall
import contextlib
import io
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from . import ROOT, Mutant, all_mutants

SECONDS = 120
"""CPU time for the tests of one mutant; whatever takes longer is noticed too."""
OPTIONS = ("-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")
PASSED, FAILED, INTERRUPTED, CRASHED = 0, 1, 2, 70
COPIED = ("animatediff_core", "cli", "tests", "prompts", "docs", "benchmarks", "pyproject.toml",
          "README.md", "Makefile", ".ci")  # fmt: skip


@dataclass(frozen=True)
class Run:
    """Tests to run, with a mutant or (None) on the code as it is."""

    tests: tuple[str, ...]
    mutant: Mutant | None = None


@dataclass(frozen=True)
class Done:
    """How a run ended."""

    run: Run
    code: int
    seconds: float
    output: str


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("words", nargs="*", help="run those whose room or file has one of these")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--verbose", action="store_true", help="print a line for every mutant")
    given = parser.parse_args(arguments)
    mutants = [m for m in all_mutants() if _chosen(m, given.words)]
    stale = [(m, fault) for m in mutants if (fault := m.fault())]
    for mutant, fault in stale:
        _say(f"stale: {mutant}: {fault}")
    mutants = [m for m in mutants if m.fault() is None]
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        trees = [_copy(Path(scratch) / str(number)) for number in range(given.processes)]
        _preload(trees[0], mutants)
        sound = [Run(tests) for tests in dict.fromkeys(m.tests for m in mutants)]
        broken = {done.run.tests: done for done in _all(sound, trees) if done.code != PASSED}
        for tests, done in broken.items():
            _say(f"fails without a mutant: {' '.join(tests)}\n{done.output}")
        runs = [Run(mutant.tests, mutant) for mutant in mutants if mutant.tests not in broken]
        failed = _report(_all(runs, trees), len(runs), verbose=given.verbose)
    return int(failed or bool(stale) or bool(broken))


def _chosen(mutant: Mutant, words: Sequence[str]) -> bool:
    return not words or any(word in f"{mutant.room} {mutant.file}" for word in words)


def _report(ended: Iterator[Done], total: int, *, verbose: bool) -> bool:
    """Print the survivors as they come, and the totals; returns whether a run went wrong."""
    killed: Counter[str] = Counter()
    survived: Counter[str] = Counter()
    useless = 0
    for done in ended:
        mutant = done.run.mutant
        assert mutant is not None
        if done.code == PASSED:
            survived[mutant.room] += 1
            _say(f"survives: {mutant} ({' '.join(mutant.tests)})")
        elif done.code in (FAILED, INTERRUPTED, -signal.SIGKILL, -signal.SIGALRM):
            killed[mutant.room] += 1
            if verbose:
                _say(f"killed in {done.seconds:.1f} s: {mutant}")
        else:
            useless += 1
            _say(f"pytest ends with {done.code}: {mutant}\n{done.output}")
    for room in sorted(killed.keys() | survived.keys()):
        _say(f"{room}: {survived[room]} of {survived[room] + killed[room]} survive")
    share = 100 * survived.total() / max(total, 1)
    _say(f"{survived.total()} of {total} survive ({share:.1f} in 100)")
    return useless > 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _copy(tree: Path) -> Path:
    """A copy of the repository, compiled: a mutated file alone is compiled again."""
    tree.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            leave = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, tree / name, ignore=leave)
        else:
            shutil.copy2(source, tree / name)
    if (shared := ROOT.parent / "shared").is_dir() and not (tree.parent / "shared").exists():
        (tree.parent / "shared").symlink_to(shared)
    with contextlib.redirect_stdout(io.StringIO()):
        compileall.compile_dir(tree, quiet=1)
    return tree


def _preload(tree: Path, mutants: Sequence[Mutant]) -> None:
    """Import here what the tests import, but for the project's own modules."""
    names = tree / "modules.txt"
    tests = sorted({test.partition("::")[0] for mutant in mutants for test in mutant.tests})
    process = os.fork()
    if process == 0:
        _end_with(tree, ["--collect-only", *tests], names)
    os.waitpid(process, 0)
    if not names.is_file():
        sys.exit((tree / "out.txt").read_text())
    mine = {"animatediff_core", "cli", "conftest", *(path.stem for path in tree.glob("tests/*.py"))}
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in names.read_text().split("\n"):
        if name.partition(".")[0] not in mine and name not in sys.modules:
            with contextlib.suppress(Exception):
                import_module(name)


def _all(runs: Sequence[Run], trees: Sequence[Path]) -> Iterator[Done]:
    """Every run in a process of its own, as many at a time as there are trees."""
    waiting, free = list(reversed(runs)), list(trees)
    running: dict[int, tuple[Run, Path, float]] = {}
    while waiting or running:
        while waiting and free:
            run, tree = waiting.pop(), free.pop()
            running[_start(run, tree)] = (run, tree, time.monotonic())
        process, status = os.wait()
        run, tree, begun = running.pop(process)
        free.append(tree)
        if run.mutant is not None:
            (tree / run.mutant.file).unlink()
            shutil.move(tree / "original.py", tree / run.mutant.file)
        yield Done(
            run,
            os.waitstatus_to_exitcode(status),
            time.monotonic() - begun,
            "\n".join((tree / "out.txt").read_text(errors="replace").splitlines()[-25:]),
        )


def _start(run: Run, tree: Path) -> int:
    """Fork a process that runs the tests; returns its number."""
    if run.mutant is not None:
        changed, file = run.mutant.mutated(tree), tree / run.mutant.file
        shutil.move(file, tree / "original.py")  # with its date, so that it is not compiled again
        file.write_text(changed, "utf-8")
    process = os.fork()
    if process:
        return process
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    signal.alarm(10 * SECONDS)  # a test that waits for ever takes no CPU time
    return _end_with(tree, ["-x", *run.tests])


def _end_with(tree: Path, arguments: Sequence[str], modules: Path | None = None) -> NoReturn:
    """Run pytest in a copy of the repository and end this process with its exit code."""
    code = CRASHED
    try:
        code = _pytest(tree, arguments)
        if modules is not None:
            modules.write_text("\n".join(list(sys.modules)))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _pytest(tree: Path, arguments: Sequence[str]) -> int:
    with (tree / "out.txt").open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import pytest

    os.chdir(tree)
    os.environ["PYTHONPATH"] = str(tree)
    sys.path[0] = str(tree)
    sys.dont_write_bytecode = True
    base = tree / "tmp"
    shutil.rmtree(base, ignore_errors=True)
    return int(pytest.main([*OPTIONS, f"--basetemp={base}", *arguments]))


if __name__ == "__main__":
    sys.exit(main())
