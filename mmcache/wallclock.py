"""The wall clock, from 1970 to what 64 bits of nanoseconds hold (the year 2554): so any reading can be stored.

A program may freeze it at any time, and a machine may be set wrong. Beyond its ends it stands, as a frozen clock does.
"""

from __future__ import annotations

import time
from typing import Final

__all__ = ["now", "now_ns"]

_LAST: Final = 2**64 - 1


def now_ns() -> int:
    """Nanoseconds since 1970, from 0 to 2**64 - 1."""
    return min(max(time.time_ns(), 0), _LAST)


def now() -> float:
    """The same in seconds."""
    return now_ns() / 1e9
