"""What a forked child must make anew: locks that another thread of its parent may have held, and whatever else belongs
to one process.

Python runs the hooks after a fork of its own. A host that forks in C may run none; then `renew_if_forked`, which is
called before a lock is taken, finds another process id and does the same.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final, Protocol

from .owner import Turn

__all__ = ["Lock", "in_child", "on_fork", "renew_if_forked"]


class Renewable(Protocol):
    def begin_process(self) -> None:
        """In a forked child, before anything else uses the object."""
        ...


_pid = os.getpid()
_hooks: Final[list[Callable[[], object]]] = []
_renewables: Final[weakref.WeakSet[Any]] = weakref.WeakSet()


class Lock:
    """A re-entrant lock that a forked child finds free. A context manager: C code takes it and releases it."""

    __enter__ = property(attrgetter("_lock.__enter__"))
    __exit__ = property(attrgetter("_lock.__exit__"))

    __slots__ = ("__weakref__", "_lock")

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _renewables.add(self)

    def begin_process(self) -> None:
        self._lock = threading.RLock()

    def turn(self, timeout: float) -> Turn:
        """`with lock.turn(seconds) as is_ours:`."""
        return Turn(self._lock, timeout)


def on_fork(renewable: Renewable) -> None:
    """Have `begin_process` called in every forked child while the object lives."""
    _renewables.add(renewable)


def in_child(hook: Callable[[], object]) -> None:
    """Have a function called in every forked child. The interpreter never lets go of it, not even as it ends."""
    os.register_at_fork(after_in_child=hook)
    _hooks.append(hook)


def renew_if_forked() -> bool:
    """Whether this process was forked by means that Python did not see; then all is renewed now."""
    if os.getpid() == _pid:
        return False
    for hook in _hooks:
        hook()
    _renew()
    return True


def _renew() -> None:
    global _pid  # noqa: PLW0603 (of the process)
    # Locks first: what begins a process may take one.
    for renewable in sorted(_renewables, key=lambda one: not isinstance(one, Lock)):
        renewable.begin_process()
    _pid = os.getpid()  # Case: a signal handler raised before; the next poll renews the rest, and the others again


os.register_at_fork(after_in_child=_renew)
