"""`matrix:` makes a job of every combination of some settings' values."""

from collections.abc import Mapping
from itertools import product
from typing import Any

from ..errors import Problem, PromptFileError, at
from .reading import kind_of
from .record import nested
from .records import Job

_MOST = 10_000
"""Combinations of one job; more are rather a mistake than intended."""

Combination = Mapping[str, Any]
"""A value for each dotted key."""


def combinations(matrix: Any) -> list[Combination]:
    """All combinations in the order written, the last key changing fastest; one, empty, of none."""
    if matrix is None:
        return [{}]
    with at("matrix"):
        if not isinstance(matrix, Mapping):
            raise PromptFileError("must be a mapping of fields to lists of values")
        count = 1
        for key, values in matrix.items():
            kind_of(Job, str(key))
            if not isinstance(values, list) or not values:
                raise PromptFileError([Problem("must be a list of at least one value", str(key))])
            count *= len(values)
        if count > _MOST:
            raise PromptFileError(f"makes {count} jobs; at most {_MOST} are taken")
    return [dict(zip(matrix, row, strict=True)) for row in product(*matrix.values())]


def settings_of(combination: Combination) -> dict[str, Any]:
    """A combination as settings of a job."""
    settings: dict[str, Any] = {}
    for key, value in combination.items():
        settings = Job.merged(settings, nested(key, value))
    return settings


def names_of(combination: Combination) -> dict[str, Any]:
    """The values of a combination for a file's name: those that are one text or number."""
    return {
        key: value
        for key, value in combination.items()
        if isinstance(value, str | int | float) and not isinstance(value, bool)
    }
