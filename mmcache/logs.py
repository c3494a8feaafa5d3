"""Log lines that every handler can write, a path that is not UTF-8 being escaped in them; and those that are written
once."""

from __future__ import annotations

import logging
from typing import Any

__all__ = ["escape_paths", "log_once"]

log = logging.getLogger("mmcache")

_logged: dict[tuple[str, str, str], object] = {}


def escape_paths() -> None:
    """Have the package's logger escape what has no UTF-8, whichever module logs it. Idempotent."""
    log = logging.getLogger("mmcache")
    if _escape not in log.filters:
        log.addFilter(_escape)


def _escape(record: logging.LogRecord) -> bool:
    try:
        text = record.getMessage()
    except Exception:  # noqa: BLE001 (as without a filter, the handler says what is wrong with the arguments)
        return True
    if not text.isascii():
        escaped = text.encode("utf-8", "backslashreplace").decode()
        if escaped != text:
            record.msg, record.args = escaped, ()
    return True


def log_once(event: str, path: str, text: str, level: int = logging.WARNING, *, about: str = "", **fields: Any) -> None:
    """A line of which one is enough in a process, of each file and of each thing in it."""
    ours = object()
    if _logged.setdefault((event, path, about), ours) is ours:
        log.log(level, "%s: %s", path, text, extra={"event": event, "path": path, **fields})
