"""The package's logger, and log lines that every handler can write, a path that is not UTF-8 being escaped in them; and
those that are written once.

`logging` is imported when there is a line to be written, or by `escape_paths`: see `arrays` for why a `Cache` calls it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import logging

__all__ = ["DEBUG", "INFO", "WARNING", "escape_paths", "log", "log_once"]

DEBUG: Final = 10
INFO: Final = 20
WARNING: Final = 30
"""As in `logging`."""

_logged: dict[tuple[str, str, str], object] = {}


class _Later:
    """The logger, once one of its methods is asked for. Its lines cost no caller its work: see `_write`."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(escape_paths(), name)
        return partial(_write, found) if name in _WRITING else found


_WRITING: Final = frozenset({"debug", "info", "warning", "error", "exception", "log"})


def _write(method: Callable[..., None], *args: Any, **options: Any) -> None:
    """A handler or filter that raises costs its line. What it raised is shown as `logging` shows such errors."""
    try:
        method(*args, stacklevel=2, **options)
    except Exception:  # noqa: BLE001 (foreign code, whose error is shown)
        import logging
        import traceback

        if logging.raiseExceptions and sys.stderr is not None:
            traceback.print_exc()


if TYPE_CHECKING:
    log: logging.Logger
else:
    log = _Later()


def escape_paths() -> logging.Logger:
    """The package's logger, which escapes what has no UTF-8, whichever module logs it."""
    import logging

    found = logging.getLogger("mmcache")
    if _escape not in found.filters:
        found.addFilter(_escape)
    return found


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


def log_once(event: str, path: str, text: str, level: int = WARNING, *, about: str = "", **fields: Any) -> None:
    """A line of which one is enough in a process, of each file and of each thing in it."""
    ours = object()
    if _logged.setdefault((event, path, about), ours) is ours:
        log.log(level, "%s: %s", path, text, extra={"event": event, "path": path, **fields})
