"""Levers that an operator pulls for all processes of a cache: two files beside it, of one line each.

`.hold`      the published file stays: its age, its fingerprint and tracking are not consulted, and no automatic rebuild
             starts, until a person rebuilds it or says `resume`.
`.disabled`  caches with a source are answered by it.

Both stay across page loss and a new boot. They are looked at by polls; an event makes all processes look at once.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from ..errors import MissingFileError, UntrustedPathError, UnusableFileError
from ..sources import Source, closing, from_spec
from ..storage import fs, levers as storage
from ..storage.describe import described
from ..storage.publish import LOCK_TIMEOUT, BuildReport
from ..words import printable
from .announce import Announcer
from .decide import NO_FINGERPRINT
from .events import Kind
from .page import Page

__all__ = ["BY_ENVIRONMENT", "LeverFiles", "Levers", "disable", "enable", "look", "release", "resume", "rollback"]

log = logging.getLogger("mmcache")

BY_ENVIRONMENT: Final = "MMCACHE_DISABLE sends every read to the source"
_LONGEST: Final = 512
"""Bytes of a line that are read."""


class Levers(NamedTuple):
    """Each "", or a sentence: since when, and why."""

    held: str = ""
    disabled: str = ""


class LeverFiles:
    """The levers of one cache file, looked at again and again: a `stat` each, unless one has changed."""

    def __init__(self, path: str, refused: Callable[[UnusableFileError], object] = lambda _: None) -> None:
        """refused: is told of a lever that is not to be trusted; runs under the caller's locks."""
        self._refused = refused
        self._paths = fs.hold_name(path), fs.disabled_name(path)
        self._seen: dict[str, tuple[fs.Identity | None, str]] = {}

    def look(self) -> Levers:
        held, disabled = map(self._line, self._paths)
        return Levers(held and f"held {held}", disabled and f"disabled {disabled}")

    def _line(self, path: str) -> str:
        identity = fs.identity_of(path)
        if identity is None:
            self._seen.pop(path, None)
            return ""
        seen, line = self._seen.get(path, (None, ""))
        if identity == seen:
            return line
        try:
            line = _read(path) or f"since {_when(identity[3] / 1e9)}"
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


def look(path: str) -> Levers:
    """The levers of a cache file, as of now."""
    return LeverFiles(os.path.abspath(path)).look()


def _when(seconds: float) -> str:
    try:
        return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(seconds))} UTC"
    except (OverflowError, ValueError, OSError):
        return "a time that no clock shows"


def _since(what: str, reason: str) -> str:
    return f"by {what} since {_when(time.time())}" + (f": {printable(reason)}" if reason else "")


# --- pulling them


def rollback(
    path: str | os.PathLike[str],
    *,
    timeout: float = LOCK_TIMEOUT,
    reason: str = "",
    source: Source | None = None,
    page: Page | None = None,
) -> BuildReport:
    """See `Cache.rollback`. source: by default the one that the file names. page: in use, if the caller has one."""
    name = os.path.abspath(os.fspath(path))
    if fs.identity_of(fs.backup_name(name)) is None:  # where there never was a cache, nothing is left behind
        raise MissingFileError("there is no backup, so there is nothing to go back to", path=fs.backup_name(name))

    def line(left: int, back: int) -> str:
        return _since(f"rollback from generation {left} to the records of {back}", reason)

    control = Announcer(name, page)
    try:
        report = storage.roll_back(
            name, control=control, fingerprint=_fingerprint(name, source), line=line, timeout=timeout
        )
        control.say(Kind.LEVER)
    finally:
        control.close()
    log.warning(
        "%s: rolled back, generation %d is held",
        name,
        report.generation,
        extra={"event": "rolled_back", "path": name, "generation": report.generation},
    )
    return report


def _fingerprint(path: str, source: Source | None) -> bytes:
    """The source's, now; none where it cannot be asked, for a rollback may be needed just then."""
    try:
        if source is not None:
            return source.fingerprint()
        layout = described(path)
        if layout.source is None:
            return NO_FINGERPRINT
        with closing(from_spec(layout.source, [one.schema for one in layout.collections.values()])) as named:
            assert named is not None
            return named.fingerprint()
    except Exception:  # noqa: BLE001 (a source of a user's own may raise anything)
        return NO_FINGERPRINT


def resume(path: str | os.PathLike[str], *, page: Page | None = None) -> bool:
    """See `Cache.resume`."""
    name = os.path.abspath(os.fspath(path))
    return _moved(name, "resumed", page, line=None, lever=fs.hold_name, also=Kind.SOFT)


def release(path: str, page: Page | None = None) -> bool:
    """A person has built it anew, so that nothing is held any more; whether it was held. One `stat` if not."""
    if fs.identity_of(fs.hold_name(path)) is None:
        return False
    return _moved(path, "resumed", page, line=None, lever=fs.hold_name)


def disable(path: str | os.PathLike[str], *, reason: str = "") -> bool:
    """Have caches with a source answered by it, in all processes; whether they were not before.

    Raises MissingFileError where no process has ever had such a cache.
    """
    name = os.path.abspath(os.fspath(path))
    if all(fs.identity_of(each) is None for each in (name, fs.backup_name(name), fs.control_name(name))):
        raise MissingFileError("there is no cache here to disable: check the path", path=name)
    return _moved(name, "disabled", None, line=_since("mmcache disable", reason), lever=fs.disabled_name)


def enable(path: str | os.PathLike[str]) -> bool:
    """Have the file answer again; whether it was disabled."""
    return _moved(os.path.abspath(os.fspath(path)), "enabled", None, line=None, lever=fs.disabled_name)


def _moved(
    path: str,
    event: str,
    page: Page | None,
    *,
    line: str | None,
    lever: Callable[[str], str],
    also: Kind | None = None,
) -> bool:
    """Put or remove a line, and have all processes look; whether that changed anything."""
    was_there = fs.identity_of(lever(path)) is not None
    if line is None and not was_there:
        return False
    with fs.Directory(path) as directory:
        if line is None:
            storage.remove_line(directory, lever(directory.name))
        else:
            storage.put_line(directory, lever(directory.name), line)
    control = Announcer(path, page)
    try:
        for kind in (also, Kind.LEVER):
            if kind is not None:
                control.say(kind)
    finally:
        control.close()
    log.warning("%s: %s", path, event, extra={"event": "lever_moved", "path": path, "lever": event})
    return was_there == (line is None)
