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


def start(name: str, run: Callable[[], object], otherwise: Callable[[], object] = lambda: None) -> None:
    """Run a function in a daemon thread.

    otherwise: called before this raises, if the function is never going to run.

    Raises:
        RuntimeError: no thread can be started: a limit of processes, no memory, or the interpreter is about to end.
    """
    begun, turn = _Begun(), threading.Lock()  # who has the turn decides whether it runs
    thread = threading.Thread(target=lambda: turn.acquire(blocking=False) and run(), name=name, daemon=True)
    thread._started = begun  # type: ignore[attr-defined]
    try:
        thread.start()
        if not begun.is_set():
            raise RuntimeError(f"it did not begin within {_PATIENCE:g} s")
    except BaseException as error:
        if not turn.acquire(blocking=False):  # Case: it began late, or a signal handler raised after it had begun
            if isinstance(error, RuntimeError):
                return
            raise
        _forget(thread)
        otherwise()
        if isinstance(error, MemoryError):
            raise RuntimeError("no memory") from None  # noqa: TRY004
        raise


def _forget(thread: threading.Thread) -> None:
    """Else `threading` keeps one that did not begin for ever."""
    waiting: dict[Any, Any] = getattr(threading, "_limbo", {})
    waiting.pop(thread, None)
