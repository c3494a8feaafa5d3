"""Levers that an operator pulls for all processes of a cache: files beside it, of one line each.

`.hold`      the published file stays: its age, its fingerprint and tracking are not consulted, and no automatic rebuild
             starts, until a person rebuilds it or says `resume`.
`.resumed`   that was said, and the records are those of the rollback still, until a build has published others.
`.disabled`  caches with a source are answered by it.

All stay across page loss and a new boot. They are looked at by polls; an event makes all processes look at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from ..errors import UntrustedPathError, UnusableFileError
from ..storage import fs
from ..storage.names import disabled_name, hold_name, resumed_name
from ..text import printable

__all__ = ["BY_ENVIRONMENT", "LeverFiles", "Levers", "read_levers", "when"]

BY_ENVIRONMENT: Final = "MMCACHE_DISABLE sends every read to the source"
_LONGEST: Final = 512
"""Bytes of a line that are read."""


class Levers(NamedTuple):
    """Each "", or a sentence: since when, and why."""

    held: str = ""
    disabled: str = ""
    resumed: str = ""

    @property
    def rolled_back(self) -> str:
        """Why the records are older than the file says of itself, or ""."""
        return self.held or self.resumed


class LeverFiles:
    """The levers of one cache file, looked at again and again: a `stat` each, unless one has changed."""

    def __init__(self, path: str, refused: Callable[[UnusableFileError], object] = lambda _: None) -> None:
        """refused: is told of a lever that is not to be trusted; runs under the caller's locks."""
        self._refused = refused
        self._paths = hold_name(path), disabled_name(path), resumed_name(path)
        self._seen: dict[str, tuple[fs.Identity | None, str]] = {}

    def read(self) -> Levers:
        held, disabled, resumed = map(self._line, self._paths)
        return Levers(
            held and f"held {held}",
            disabled and f"disabled {disabled}",
            resumed and f"rolled back, and resumed {resumed}",
        )

    def _line(self, path: str) -> str:
        identity = fs.identity_of(path)
        if identity is None:
            self._seen.pop(path, None)
            return ""
        seen, line = self._seen.get(path, (None, ""))
        if identity == seen:
            return line
        try:
            line = _read(path) or f"since {when(identity[3] / 1e9)}"
        except UntrustedPathError as error:
            self._refused(error)
            line = ""
        except UnusableFileError as error:  # it may be read a moment later, and it is pulled all the same
            return f"by a file that cannot be read: {error.message}" if _is_trusted(path) else ""
        self._seen[path] = identity, line
        return line


def _read(path: str) -> str:
    """Raises UnusableFileError."""
    file = fs.ReadFile(path)
    try:
        text = file.read(0, _LONGEST).decode("utf-8", "replace").strip()
    finally:
        file.close()
    return printable(text.splitlines()[0]) if text else ""


def _is_trusted(path: str) -> bool:
    try:
        fs.check_owner(path)
    except UnusableFileError:
        return False
    return True


def read_levers(path: str) -> Levers:
    """The levers of a cache file, as of now."""
    return LeverFiles(os.path.abspath(path)).read()


def when(seconds: float) -> str:
    """A time of the wall clock, as a line shows it."""
    try:
        return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(seconds))} UTC"
    except (OverflowError, ValueError, OSError):
        return "a time that no clock shows"
