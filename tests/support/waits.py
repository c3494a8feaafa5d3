"""Waits on conditions. They end as soon as the condition holds, and are generous to a busy machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

PATIENCE = 30.0
"""Seconds for what takes none on an idle machine."""


def until(what: str, condition: Callable[[], Any], timeout: float = PATIENCE, pause: float = 0.005) -> Any:
    """The first true value that the condition gives; fails after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {timeout:g} s for: {what}"
        time.sleep(pause)
    return found


def until_none(what: str, found: Callable[[], Any], timeout: float = PATIENCE, pause: float = 0.005) -> None:
    """Waits until nothing is found any more; fails after `timeout` seconds, and says what is."""
    deadline = time.monotonic() + timeout
    while left := found():
        assert time.monotonic() < deadline, f"waited {timeout:g} s for: {what}; there is {left}"
        time.sleep(pause)


def holds(what: str, condition: Callable[[], Any], seconds: float, pause: float = 0.01) -> None:
    """Fails when the condition is not true all the time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert condition(), what
        time.sleep(pause)
