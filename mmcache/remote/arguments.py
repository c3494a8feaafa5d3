"""What the functions of releases were given: each is checked here before anything is asked of a store."""

from __future__ import annotations

import sys

__all__ = ["at_least_one", "ratio", "seconds"]

_LONGEST = 1e9
"""Seconds, some 30 years: what is more is a mistake, and more than a date can differ by."""


def seconds(name: str, value: object) -> float:
    """Raises ValueError for what is no time from 0 on."""
    return _number(name, value, _LONGEST, f"a number of seconds, from 0 to {_LONGEST:g}")


def ratio(name: str, value: object) -> float:
    """Raises ValueError for what is no finite number from 0 on."""
    return _number(name, value, sys.float_info.max, "a number, 0 or more")


def _number(name: str, value: object, most: float, expected: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
        raise ValueError(f"{name} must be {expected}, not {value!r:.100}")
    return float(value)


def at_least_one(name: str, value: object) -> int:
    """Raises ValueError for what is no int from 1 on."""
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} must be an int, 1 or more, not {value!r:.100}")
    return value
