"""Sums that any thread adds to at any moment, a signal handler and a log handler included: without a lock, and exactly.

`add` appends to a queue, which is one step of the interpreter. `fold` adds the queue to the sums, one caller at a time.
A second caller leaves at once, also one that interrupts the first; its entries are left to the first, or to the next.

A signal is handled after a call or a jump back, and its handler may raise there. So what must not be done in part is
one call into C or one store. The turn to fold is taken by a `del`, after which no signal is handled.
"""

from __future__ import annotations

import time
from array import array
from collections import deque
from itertools import repeat, starmap
from typing import Final

__all__ = ["U64", "Tally"]

U64: Final = 2**64 - 1
_LONGEST: Final = 512
"""The queue is folded when it is longer, which bounds its memory."""
_TRIES: Final = 100
"""A reader gives way to the thread that folds so often, at most, before it takes the sums without the rest."""


class Tally:
    """Words of 64 bits, which wrap. It does no I/O and never waits."""

    __slots__ = ("_queue", "_state", "_turn")

    def __init__(self, words: int) -> None:
        self._queue: deque[tuple[int, int]] = deque()
        # The sums, never changed once they stand here, and entries that were taken from the queue to be added next.
        self._state: tuple[array[int], list[tuple[int, int]]] = array("Q", bytes(8 * words)), []
        self._turn = True

    def add(self, *entries: tuple[int, int]) -> None:
        """Add to words: (word, n), all of them or none."""
        self._queue.extend(entries)
        if len(self._queue) > _LONGEST:
            self.fold()

    def fold(self) -> bool:
        """Add the queue to the sums. False, and nothing done, while another caller does."""
        try:
            del self._turn
        except AttributeError:
            return False
        try:
            while True:
                sums, entries = self._state
                if not entries:
                    entries.extend(starmap(self._queue.popleft, repeat((), len(self._queue))))
                if not entries:
                    return True
                # Case: a handler raises below. The entries are still in the state, and the next fold adds them.
                sums = sums[:]
                for word, n in entries:
                    sums[word] = sums[word] + n & U64
                self._state = sums, []
        finally:
            self._turn = True

    def sums(self) -> array[int]:
        """With all that was added before, unless this call interrupts a fold. Not to be changed."""
        for _ in range(_TRIES):
            if self.fold():
                break
            time.sleep(0)
        return self._state[0]
