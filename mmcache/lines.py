"""Log lines, and calls of `on_event`, that are made when no lock is held: a handler of log lines and a callback are
foreign code, and may call whatever they like."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from .callbacks import CacheEvent, of_page
from .logs import log
from .sharing.events import Event
from .sharing.head import Head

__all__ = ["Lines"]

_LONGEST_QUEUE: Final = 65_536
"""Events that wait for the callback, at most; beyond that the oldest are dropped."""


class Lines:
    """path: of the cache file that they are about. Any thread may note a line or an event, and write those of others.

    on_event: called with each event, in the thread that finds it noted.
    """

    def __init__(self, path: str, on_event: Callable[[CacheEvent], object] | None = None) -> None:
        self._path = path
        self._on_event = on_event
        self._noted: deque[tuple[int, str, tuple[Any, ...], dict[str, Any]]] = deque()
        self._events: deque[CacheEvent] = deque(maxlen=_LONGEST_QUEUE)

    def clear(self) -> None:
        """In a forked child: what the parent has noted, the parent writes."""
        self._noted.clear()
        self._events.clear()

    def note(self, level: int, event: str, text: str, *args: Any, **fields: Any) -> None:
        """A line to be written soon."""
        self._noted.append((level, text, args, {"event": event, "path": self._path, **fields}))

    def tell(self, event: CacheEvent) -> None:
        """An event to be given to the callback soon."""
        if self._on_event is not None:
            self._events.append(event)

    def heard(self, event: Event, head: Head) -> None:
        """The same, of an event of the page."""
        if self._on_event is not None and (told := of_page(self._path, event, head)) is not None:
            self._events.append(told)

    def write(self) -> None:
        """Write what was noted, and call the callback. Not to be called under a lock."""
        while self._noted:
            try:
                level, text, args, fields = self._noted.popleft()
            except IndexError:  # another thread writes it
                break
            log.log(level, text, *args, extra=fields)
        # As many as there are now: a callback that invalidates at each invalidation must not keep a read for ever.
        for _ in range(len(self._events)):
            try:
                event = self._events.popleft()
            except IndexError:
                break
            self._call(event)

    def _call(self, event: CacheEvent) -> None:
        assert self._on_event is not None
        try:
            self._on_event(event)
        except Exception:  # noqa: BLE001 (foreign code, whose error is logged)
            log.exception(
                "%s: on_event raised at %r",
                self._path,
                event.kind,
                extra={"event": "callback_failed", "path": self._path},
            )
