"""Log lines that every handler can write: a path that is not UTF-8 is escaped in them."""

from __future__ import annotations

import logging

__all__ = ["escape_paths"]


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
