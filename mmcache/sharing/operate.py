"""Pulling the operator's levers: see `levers`. What is put beside the file is announced, so that all processes look."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from ..errors import MissingFileError
from ..logs import log
from ..sources import Source, closing, from_spec
from ..storage import fs, levers as storage
from ..storage.describe import layout_from_file_or_backup
from ..storage.names import backup_name, control_name, disabled_name, hold_name, resumed_name
from ..storage.publish import LOCK_TIMEOUT, BuildReport
from ..text import printable
from .announce import Announcer
from .decide import NO_FINGERPRINT
from .events import Kind
from .levers import when
from .page import Page

__all__ = ["disable", "enable", "release", "resume", "rollback", "settle"]


def _since(what: str, reason: str) -> str:
    return f"by {what} since {when(time.time())}" + (f": {printable(reason)}" if reason else "")


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
    if fs.identity_of(backup_name(name)) is None:  # where there never was a cache, nothing is left behind
        raise MissingFileError("there is no backup, so there is nothing to go back to", path=backup_name(name))

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
        layout = layout_from_file_or_backup(path, older=True)
        if layout.source is None:
            return NO_FINGERPRINT
        with closing(from_spec(layout.source, [one.schema for one in layout.collections.values()])) as named:
            assert named is not None
            return named.fingerprint()
    except Exception:  # noqa: BLE001 (a source of a user's own may raise anything)
        return NO_FINGERPRINT


def resume(path: str | os.PathLike[str], *, page: Page | None = None) -> bool:
    """See `Cache.resume`.

    The file says that its records are of the time of the rollback. That they are older is said by a line beside it,
    until they are replaced: without it a lost page would leave them fresh, and `publish` would send them to a fleet.
    """
    name = os.path.abspath(os.fspath(path))
    if fs.identity_of(hold_name(name)) is None:
        return False
    with fs.Directory(name) as directory:
        storage.put_line(directory, resumed_name(directory.name), _since("mmcache resume", ""))
    return _moved(name, "resumed", page, line=None, lever=hold_name)


def release(path: str, page: Page | None = None) -> bool:
    """A person has built it anew, so that nothing is held any more; whether it was held. Two `stat`s if not."""
    settle(path, page)
    if fs.identity_of(hold_name(path)) is None:
        return False
    return _moved(path, "resumed", page, line=None, lever=hold_name)


def settle(path: str, page: Page | None = None) -> None:
    """What was rolled back and resumed has been replaced. One `stat` where it was not."""
    if fs.identity_of(resumed_name(path)) is not None:
        _moved(path, "settled", page, line=None, lever=resumed_name)


def disable(path: str | os.PathLike[str], *, reason: str = "") -> bool:
    """Have caches with a source answered by it, in all processes; whether they were not before.

    Raises MissingFileError where no process has ever had such a cache.
    """
    name = os.path.abspath(os.fspath(path))
    if all(fs.identity_of(each) is None for each in (name, backup_name(name), control_name(name))):
        raise MissingFileError("there is no cache here to disable: check the path", path=name)
    return _moved(name, "disabled", None, line=_since("mmcache disable", reason), lever=disabled_name)


def enable(path: str | os.PathLike[str]) -> bool:
    """Have the file answer again; whether it was disabled."""
    return _moved(os.path.abspath(os.fspath(path)), "enabled", None, line=None, lever=disabled_name)


def _moved(
    path: str,
    event: str,
    page: Page | None,
    *,
    line: str | None,
    lever: Callable[[str], str],
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
        control.say(Kind.LEVER)
    finally:
        control.close()
    log.warning("%s: %s", path, event, extra={"event": "lever_moved", "path": path, "lever": event})
    return was_there == (line is None)
