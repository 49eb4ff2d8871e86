"""Closed choices: the one check that a setting is among them."""

from typing import get_args


def one_of(name: str, value: str, choices: object) -> None:
    """ValueError where a value is none of a Literal's."""
    known = get_args(choices)
    if value not in known:
        raise ValueError(f"{name} must be {' or '.join(known)}, got {value!r}")
