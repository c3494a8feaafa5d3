"""Ownership that no exception can break: of a descriptor, of a lock, of a turn.

A signal handler may raise between any two instructions of Python. So the owner is made first. What it owns comes into
it, and leaves it, inside one call of C code each; and its finalizer is C code, in which no handler runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import compress
from operator import attrgetter, length_hint, methodcaller
from threading import get_ident
from typing import Any, Final

__all__ = ["Owner", "Turn", "Within"]


class Owner:
    """Takes once, and gives back exactly once: by `give_back`, or as it is dropped. Any thread may call any method."""

    __slots__ = ("__weakref__", "_end", "_left", "_taken")

    __del__ = property(attrgetter("_end"))
    """Called by the interpreter without an instruction of Python."""

    def __init__(self, give_back: Callable[[Any], object]) -> None:
        self._taken: list[Any] = []
        self._left = iter(self._taken)
        self._end: Callable[[], object] = partial(deque, map(give_back, self._left), 0)

    @property
    def owned(self) -> Any:
        """What was taken last; None before that, and when it was given back."""
        count = length_hint(self._left)
        return self._taken[-1] if count else None

    def take(self, acquire: Callable[..., Any], *arguments: Any) -> None:
        """What `acquire(*arguments)` returns. It must be C code. Raises what it raises."""
        self._taken.extend(map(acquire, *((argument,) for argument in arguments)))

    def take_lock(self, lock: Any, timeout: float) -> bool:
        """A lock of `threading`, if it is to be had within so many seconds; whether it was."""
        self._taken.extend(compress((lock,), map(lock.acquire, (True,), (timeout,))))
        return bool(self._taken)

    def forget(self) -> None:
        """Own it no more, and do not give it back."""
        deque(self._left, 0)

    def give_back(self) -> None:
        """Nothing happens where it was given back before. Raises what giving back raises."""
        self._end()


_RELEASE: Final = methodcaller("release")


class Turn:
    """Holds a lock of `threading` while a `with` block runs that got it in time, however the block ends.

    with Turn(lock, timeout) as is_ours: ...
    """

    __slots__ = ("_lock", "_owner", "_timeout")

    def __init__(self, lock: Any, timeout: float = -1) -> None:
        self._owner = Owner(_RELEASE)
        self._lock = lock
        self._timeout = timeout

    def __enter__(self) -> bool:
        return self._owner.take_lock(self._lock, self._timeout)

    def __exit__(self, *_: object) -> None:
        self._owner.give_back()


class Within:
    """This thread is in a set while a `with` block runs, however the block ends. Not to be nested."""

    __slots__ = ("_owner", "_threads")

    def __init__(self, threads: set[int]) -> None:
        self._owner = Owner(threads.discard)
        self._threads = threads

    def __enter__(self) -> None:
        ident = get_ident()
        self._owner.take(int, ident)
        self._threads.add(ident)

    def __exit__(self, *_: object) -> None:
        self._owner.give_back()
