"""`matrix:` makes a job of every combination of some fields' values."""

from collections.abc import Mapping
from itertools import product
from typing import Any

from .layers import merged, nested
from .reader import check_path
from .records import Job

_MOST = 10_000
"""Combinations of one job; more are rather a slip than a wish."""

Combination = Mapping[str, Any]
"""A value for each dotted key."""


def combinations(matrix: Any, place: str, problems: list[str]) -> list[Combination]:
    """All combinations in the order written, the last key changing fastest; one, empty, of none."""
    if matrix is None:
        return [{}]
    if not isinstance(matrix, Mapping):
        problems.append(f"{place}matrix: must be a mapping of fields to lists of values")
        return []
    count = 1
    for key, values in matrix.items():
        check_path(Job, str(key), f"{place}matrix.", problems)
        if not isinstance(values, list) or not values:
            problems.append(f"{place}matrix.{key}: must be a list of at least one value")
            return []
        count *= len(values)
    if count > _MOST:
        problems.append(f"{place}matrix: makes {count} jobs; at most {_MOST} are taken")
        return []
    return [dict(zip(matrix, row, strict=True)) for row in product(*matrix.values())]


def settings_of(combination: Combination) -> dict[str, Any]:
    """A combination as settings of a job."""
    settings: dict[str, Any] = {}
    for key, value in combination.items():
        settings = merged(settings, nested(key, value))
    return settings


def names_of(combination: Combination) -> dict[str, Any]:
    """What a file's name says of a combination: the values that are one text or number."""
    return {
        key: value
        for key, value in combination.items()
        if isinstance(value, str | int | float) and not isinstance(value, bool)
    }
