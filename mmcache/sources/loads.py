"""Lookups in a source that can only be read whole: callers that ask at the same time share one read.

A caller never gets what a read gave that had begun before it asked: what was invalidated before that is not in it. So
those who ask while a read is under way wait for its end, and share the next one. A read that takes longer than
`_PATIENCE` is not waited for, lest a source that waits for a reader of its own cache hangs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import Final

from ..forks import Lock, on_fork
from .base import Key
from .mappings import Keyed

__all__ = ["Loads"]

_PATIENCE: Final = 60.0
"""Seconds to wait for a read of another thread, until it is done without it."""

Load = Callable[[Collection[Key]], Keyed]
"""Reads all of a collection, and keeps the records with these keys."""


class _Shared:
    """One read. wanted: keys that it looks for; they may grow until it begins. found, error: how it ended."""

    def __init__(self) -> None:
        self.wanted: set[Key] = set()
        self.found: Keyed | None = None
        self.error: Exception | None = None
        self.done = threading.Event()


class Loads:
    """The reads of one source, by collection."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.begin_process()
        on_fork(self)

    def begin_process(self) -> None:
        """In a forked child, the threads that read are gone."""
        self._under_way: dict[str, _Shared] = {}
        self._next: dict[str, _Shared] = {}
        self._threads: set[int] = set()

    def find(self, collection: str, keys: Collection[Key], load: Load) -> Keyed:
        """The records with these keys, of a read that begins after this call. Raises what `load` raises."""
        if threading.get_ident() in self._threads:  # Case: a source that looks something up in itself
            return load(keys)
        with self._lock:
            before, shared = self._under_way.get(collection), self._next.get(collection)
            is_ours = shared is None
            if shared is None:
                shared = self._next[collection] = _Shared()
            shared.wanted.update(keys)
        if is_ours:
            return self._lead(collection, shared, before, load)
        shared.done.wait(2 * _PATIENCE)
        if shared.error is not None:
            raise shared.error
        # Case: the thread that was to read was interrupted, or hangs.
        return load(keys) if shared.found is None else shared.found

    def _lead(self, collection: str, shared: _Shared, before: _Shared | None, load: Load) -> Keyed:
        """Read for all who asked before the read begins."""
        ident = threading.get_ident()
        try:
            if before is not None:
                before.done.wait(_PATIENCE)
            with self._lock:  # from here on, others share the next one
                self._under_way[collection] = shared
                del self._next[collection]
            self._threads.add(ident)
            shared.found = load(shared.wanted)
            return shared.found
        except Exception as error:
            shared.error = error
            raise
        finally:
            self._threads.discard(ident)
            with self._lock:
                for place in (self._under_way, self._next):
                    if place.get(collection) is shared:
                        del place[collection]
            shared.done.set()
