"""Log lines that are written when no lock is held: a handler of log lines is foreign code, and may call whatever it
likes."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

__all__ = ["Lines"]

log = logging.getLogger("mmcache")


class Lines:
    """path: of the cache file that they are about. Any thread may note a line, and write those of others."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._noted: deque[tuple[int, str, tuple[Any, ...], dict[str, Any]]] = deque()

    def note(self, level: int, event: str, text: str, *args: Any, **fields: Any) -> None:
        """A line to be written soon."""
        self._noted.append((level, text, args, {"event": event, "path": self._path, **fields}))

    def write(self) -> None:
        """Write what was noted. Not to be called under a lock."""
        while self._noted:
            try:
                level, text, args, fields = self._noted.popleft()
            except IndexError:  # another thread writes it
                return
            log.log(level, text, *args, extra=fields)
