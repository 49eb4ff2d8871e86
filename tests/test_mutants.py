"""The list of wrong changes still applies: each stands for code that is there."""

import ast
from pathlib import Path

from mutants import all_mutants

ROOT = Path(__file__).parent.parent
MUTANTS = all_mutants()


def test_every_mutant_applies_exactly_once():
    assert [f"{mutant}: {fault}" for mutant in MUTANTS if (fault := mutant.fault())] == []


def test_every_mutant_is_a_program_of_its_own():
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)
    for mutant in MUTANTS:
        ast.parse(mutant.mutated(ROOT), str(mutant))


def test_every_mutants_tests_are_there():
    for argument in {test for mutant in MUTANTS for test in mutant.tests}:
        file, _, test = argument.partition("::")
        names = {node.name for node in ast.walk(ast.parse((ROOT / file).read_text()))
                 if isinstance(node, ast.FunctionDef)}  # fmt: skip
        assert not test or test in names, argument


def test_there_are_enough_of_them():
    assert len(MUTANTS) >= 150
