"""The clocks of this process, which a test sets. The machine's own go on meanwhile, for those who wait."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Final, Self
from unittest import mock

from mmcache import native


class Clock:
    """ahead: seconds by which the wall clock is off. later: seconds that the clock that never steps has gone on."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self.later = 0.0
        self.stands: float | None = None
        self._real = {name: getattr(time, name) for name in ("time", "time_ns", "monotonic", "monotonic_ns")}

    def stand(self, at: float) -> None:
        """The wall clock stops at a time; `ahead` still counts."""
        self.stands = at

    def time(self) -> float:
        return self.time_ns() / 1e9

    def time_ns(self) -> int:
        now = self._real["time_ns"]() if self.stands is None else int(self.stands * 1e9)
        return now + int(self.ahead * 1e9)

    def monotonic(self) -> float:
        return self._real["monotonic"]() + self.later

    def monotonic_ns(self) -> int:
        return self._real["monotonic_ns"]() + int(self.later * 1e9)

    @contextlib.contextmanager
    def installed(self) -> Iterator[Self]:
        """Whatever asks `time` in this process is answered by this clock."""
        with mock.patch.multiple(time, **{name: getattr(self, name) for name in self._real}):
            native.bound(self.monotonic, "monotonic")
            try:
                yield self
            finally:
                native.bound(None, "monotonic")


def step_wall_clock(seconds: float) -> None:
    """The wall clock of this process jumps, and stays there. For children."""
    clock = Clock()
    clock.ahead = seconds
    _steps.append(clock.installed())
    _steps[-1].__enter__()


_steps: Final[list[contextlib.AbstractContextManager[Clock]]] = []
"""They are kept: one that nothing refers to is closed by the garbage collector, and takes its step back."""
