"""`Lane`: what a builder writes to scratch files, and its sums, in a thread of their own while it makes the next bytes.

System calls, xxhash and hashlib let go of the interpreter while they work, so on a second core their share of a build
costs no time. Small builds start no thread. Where none can be started, the caller does the work itself.

The thread ends by itself, however the build ends. It writes to no file but those that the lane keeps. These are closed
when the thread has ended, else by the last reference: never under its hands, where another file could get the number of
a descriptor that it writes to.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from queue import Empty, SimpleQueue
from typing import Any, Final, Self, TypeVar

from ..threads import start, why_none

__all__ = ["Lane"]

Work = Callable[[Any], object]
File = TypeVar("File", bound=AbstractContextManager[Any])

_WORTH: Final = 8 * 2**20
"""Bytes from which on a thread is started: what is less is done before a thread begins."""
_TOGETHER: Final = 2**20
"""Bytes that are handed over together; the thread has so many at most, or one piece, and as many wait."""
_IDLE: Final = 1.0
"""Seconds after which the thread looks whether its lane is still there."""
_PATIENCE: Final = 10.0
"""Seconds in which a call ends, on a disk that works."""


class _Hand:
    """What lane and thread share. free: locked while the thread has work. error: what the work raised."""

    __slots__ = ("error", "free", "work")

    def __init__(self) -> None:
        self.work: SimpleQueue[list[tuple[Work, Any]] | None] = SimpleQueue()
        self.free = threading.Lock()
        self.error: BaseException | None = None

    def await_free(self) -> None:
        """Until the thread has done all. Raises what the work raised."""
        self.free.acquire()
        if self.error is not None:
            self.free.release()
            raise self.error


class Lane:
    """Calls that are made one after another, in the order in which they were given.

    with Lane() as lane:
        lane.call(digest.update, data)
        lane.wait()
        digest.hexdigest()

    For one thread. What a call raises, a later method raises.
    """

    _hand: _Hand | None = None
    _thread: threading.Thread | None = None
    _is_alone = False

    def __init__(self) -> None:
        self._kept = contextlib.ExitStack()
        self._waiting: list[tuple[Work, Any]] = []
        self._size = self._seen = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        if self._thread is not None:
            self._thread.join(_PATIENCE)
        # Case: a signal's exception comes before the join has returned. What follows is then left to references.
        if self._thread is None or not self._thread.is_alive():
            self._kept.close()

    def __del__(self) -> None:
        self._close()

    def _close(self) -> None:
        hand, self._hand = self._hand, None
        if hand is not None:
            hand.work.put(None)

    def keep(self, file: File) -> File:
        """A file that is closed when no call writes to it any more."""
        self._kept.enter_context(file)
        return file

    def call(self, work: Work, data: Any) -> None:
        """`work(data)`, now or later. data: has a buffer of bytes, which must not change until `wait` returns."""
        self._waiting.append((work, data))
        self._size += len(data)
        if self._size >= _TOGETHER:
            self._hand_over()

    def wait(self) -> None:
        """Until all calls are made."""
        self._hand_over()
        if self._hand is not None:
            self._hand.await_free()
            self._hand.free.release()

    def _hand_over(self) -> None:
        some, self._waiting = self._waiting, []
        self._seen += self._size
        self._size = 0
        if self._hand is None and not self._is_alone and self._seen >= _WORTH:
            self._begin()
        if self._hand is None:
            _make(some)
        elif some:
            self._hand.await_free()
            self._hand.work.put(some)

    def _begin(self) -> None:
        """The thread, or none for good."""
        self._is_alone = bool(why_none())
        if self._is_alone:
            return
        hand, owner = _Hand(), weakref.ref(self)
        try:
            self._thread = start("mmcache-sums", lambda: _serve(hand, owner))
        except RuntimeError:
            self._is_alone = True
        else:
            self._hand = hand


def _make(calls: list[tuple[Work, Any]]) -> None:
    for work, data in calls:
        work(data)


def _serve(hand: _Hand, owner: Callable[[], Lane | None]) -> None:
    """The thread holds nothing of the lane, so that a lane that is gone ends it."""
    while True:
        try:
            calls = hand.work.get(timeout=_IDLE)
        except Empty:
            if owner() is None:
                return
            continue
        if calls is None:
            return
        try:
            _make(calls)
        except BaseException as error:  # noqa: BLE001 (raised where it is waited for)
            hand.error = error
        finally:
            del calls
            hand.free.release()
