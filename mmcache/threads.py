"""Threads that begin, or are known not to.

`Thread.start` of CPython waits for ever for a thread that dies before it begins, which a lack of memory does to it
(https://github.com/python/cpython/issues/140746).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any, Final

__all__ = ["start", "why_none"]

_PATIENCE: Final = 1.0
"""Seconds for a thread to begin."""


def why_none() -> str:
    """Why this process had better start no thread; "" where it may.

    uWSGI loads an application in its master and forks workers in C. A thread that has the interpreter's lock then
    leaves it locked in the worker for ever. Without `--enable-threads`, threads stand still between requests."""
    uwsgi = sys.modules.get("uwsgi")
    if uwsgi is None or not hasattr(uwsgi, "worker_id"):
        return ""
    if not uwsgi.worker_id():
        return "uWSGI has its workers yet to fork"
    return "" if getattr(uwsgi, "has_threads", True) else "uWSGI runs without --enable-threads"


class _Begun(threading.Event):
    """What `Thread.start` waits for, with an end."""

    def wait(self, timeout: float | None = None) -> bool:
        return super().wait(_PATIENCE if timeout is None else timeout)


class _Thread(threading.Thread):
    """turn: taken once, by the thread as it runs, or by its starter, who gives it up."""

    def __init__(self, name: str, run: Callable[[], object]) -> None:
        super().__init__(target=lambda: self.turn.acquire(blocking=False) and run(), name=name, daemon=True)
        self.turn = threading.Lock()
        self._started = _Begun()
        self.is_given_up = False

    def _bootstrap(self) -> None:
        if self.is_given_up:
            return
        try:
            super()._bootstrap()  # type: ignore[misc]
        except KeyError:
            if not self.is_given_up:  # Case: given up between the look and the beginning
                raise

    def give_up(self) -> None:
        """Else `threading` keeps one that did not begin for ever."""
        self.is_given_up = True
        waiting: dict[Any, Any] = getattr(threading, "_limbo", {})
        waiting.pop(self, None)


def start(name: str, run: Callable[[], object], otherwise: Callable[[], object] = lambda: None) -> threading.Thread:
    """Run a function in a daemon thread, which is returned: it has begun, or begins late.

    otherwise: called before this raises, if the function is never going to run.

    Raises:
        RuntimeError: no thread can be started: a limit of processes, no memory, or the interpreter is about to end.
    """
    thread = _Thread(name, run)
    try:
        thread.start()
        if not (thread.is_alive() or thread.turn.locked()):
            raise RuntimeError(f"it did not begin within {_PATIENCE:g} s")
    except BaseException as error:
        if not thread.turn.acquire(blocking=False):  # Case: late, or a signal handler raised after it had begun
            if isinstance(error, RuntimeError):
                return thread
            raise
        thread.give_up()
        otherwise()
        if isinstance(error, MemoryError):
            raise RuntimeError("no memory") from None  # noqa: TRY004
        raise
    return thread
