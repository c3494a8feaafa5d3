"""Polling: what takes unknown time is done by a thread, and no read waits long for it.

A poll has two parts, each run by at most one thread at a time: the files, and the source, which may hang for ever
without keeping the files from being polled again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Final

from . import threads
from .forks import on_fork
from .logs import log
from .owner import Turn, Within

__all__ = ["PATIENCE", "Poller"]

PATIENCE: Final = 0.02
"""Seconds that a read waits for the result of a poll."""


_UNDER_WAY: Final = 1.0
"""Seconds that a caller who asked for a poll waits for one that is under way, until it runs its own."""


_ENDING: Final = 0.2
"""Seconds for a part that is under way to end when the cache is closed."""


class Poller:
    """parts: functions without arguments that raise nothing, run in this order. after: run when none of them is, for
    foreign code, such as handlers of log lines, which may poll."""

    def __init__(self, path: str, *parts: Callable[[], None], after: Callable[[], None]) -> None:
        self._path = path
        self._parts = parts
        self._after = after
        self._is_told = False
        self.begin_process()
        on_fork(self)

    def begin_process(self) -> None:
        """In a forked child the threads of the parent are gone."""
        self._under_way = [threading.Lock() for _ in self._parts]
        self._threads: set[int] = set()

    def is_polling(self) -> bool:
        """Whether this thread is one that polls: a source that reads the cache, say."""
        return threading.get_ident() in self._threads

    def poll(self, patience: float | None = PATIENCE) -> None:
        """Have the parts run, but for those that run already, and wait for the result at most so many seconds.

        None waits for as long as it takes, by running them in this thread, after those that are under way.
        """
        if self.is_polling():
            return
        if patience is None:
            self._run(None, _UNDER_WAY)
            return
        done = threading.Event()
        if problem := self._start(done):
            self._tell(problem)
            self._run(None)
        else:
            done.wait(patience)

    def _start(self, done: threading.Event) -> str:
        """Run the parts in a thread; why that cannot be, else nothing."""
        if problem := threads.why_none():
            return problem
        try:
            threads.start("mmcache-poll", partial(self._run, done))
        except RuntimeError as error:
            return str(error)
        return ""

    def _tell(self, problem: str) -> None:
        if not self._is_told:
            self._is_told = True
            log.warning(
                "%s: no thread can be started (%s): reads poll themselves",
                self._path,
                problem,
                extra={"event": "poll_inline", "path": self._path},
            )

    def end(self) -> None:
        """No part is run any more. One that is under way comes to its end first, unless it hangs."""
        if not self.is_polling():
            for lock in self._under_way:
                lock.acquire(timeout=_ENDING)

    def _run(self, done: threading.Event | None, wait: float = 0.0) -> None:
        """wait: seconds for a part that another thread runs, which may have looked before the caller asked."""
        with Within(self._threads):
            try:
                for part, lock in zip(self._parts, self._under_way, strict=True):
                    with Turn(lock, wait) as is_ours:
                        if is_ours:
                            part()
            finally:
                if done is not None:
                    done.set()
            self._after()
