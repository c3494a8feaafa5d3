"""The slot files of one cache file, `.<name>.<nonce>.slot`: their names, what is in them, and what becomes of the dead.

    head     form, schema, nonce; the schema changes with what is counted
    words    as `metrics` has them

A slot is written by its owner only, which holds its lock for life. One that is not held is added to the archive and
removed, under the archive's lock; the archive remembers the nonce of the last, so each is added once.
"""

from __future__ import annotations

import contextlib
import logging
import os
from array import array
from collections.abc import Iterator, Sequence
from typing import Final

from ..errors import LockTimeoutError, MissingFileError, MmcacheError, UntrustedPathError, UnusableFileError
from ..storage import fs, shared
from . import archive

__all__ = ["FORM", "SIZE", "fold", "fold_dead", "log_once", "name_of", "names", "read", "remove"]

log = logging.getLogger("mmcache")

FORM: Final = int.from_bytes(b"mmc-slot", "little")
SIZE: Final = 4096
_FOLDS: Final = 64
"""Slots of dead workers that one opening adds to the archive, at most."""


def name_of(path: str, nonce: int) -> str:
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name}.{nonce:016x}.slot")


def names(path: str) -> list[tuple[int, str]]:
    """(nonce, path) of all that are there."""
    directory, name = os.path.split(path)
    prefix, suffix = f".{name}.", ".slot"
    found = []
    for candidate in shared.names_beside(path):
        if candidate.startswith(prefix) and candidate.endswith(suffix):
            token = candidate[len(prefix) : -len(suffix)]
            if len(token) == 16 and set(token) <= set("0123456789abcdef"):
                found.append((int(token, 16), os.path.join(directory, candidate)))
    return found


def read(path: str, nonce: int, where: str, schema: int) -> array[int] | None:
    """All words of a slot; None if there is nothing in it that we know. Raises UnusableFileError as `ReadFile`."""
    try:
        with contextlib.closing(fs.ReadFile(where)) as file:
            content = file.read(0, SIZE + 1)
    except MissingFileError:
        return None
    if len(content) != SIZE:
        return None
    words = array("Q", content)
    if words[:3].tolist() == [FORM, schema, nonce]:
        return words
    log_once("slot_foreign", path, "a slot of another version of mmcache is not counted")
    return None


def fold_dead(path: str, own: int, schema: int, counted: slice) -> None:
    """Add the slots whose owners are dead to the archive. Not now, if another process is at it.

    counted: the words of a slot that are summed.
    """
    dead = [(nonce, where) for nonce, where in names(path) if nonce != own and not shared.is_held(where)]
    if not dead:
        return
    try:
        with archive.to_write(path, schema, 0.0) as totals, fs.Directory(path) as directory:
            if totals is None:
                return
            _remove_folded(totals, directory)
            for nonce, where in dead[:_FOLDS]:
                # One that cannot be trusted or read now stays, and keeps no other.
                with contextlib.suppress(UnusableFileError), _left(where) as is_dead:
                    if is_dead:
                        words = read(path, nonce, where, schema)
                        if words is None:
                            directory.unlink(os.path.basename(where))
                        else:
                            fold(totals, directory, nonce, words[counted])
    except (MmcacheError, OSError) as error:
        log_once("slots_left", path, f"what dead workers counted cannot be put away: {error}")


@contextlib.contextmanager
def _left(where: str) -> Iterator[bool]:
    """Hold the lock of a slot that its owner left; False if it did not. An owner who was just about to take it for the
    first time finds that we were faster, and makes another slot."""
    try:
        held = shared.Holding(where)
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        held.close()


def fold(totals: archive.Archive, directory: fs.Directory, nonce: int, counts: Sequence[int]) -> None:
    """Add a slot to the archive, and remove it. Under the archive's lock."""
    _remove_folded(totals, directory)
    totals.fold(nonce, counts)
    _remove_folded(totals, directory)


def _remove_folded(totals: archive.Archive, directory: fs.Directory) -> None:
    """Remove the slot that was folded last, if it is still there: its count must not be added again, and the archive
    remembers only one."""
    directory.unlink(os.path.basename(name_of(directory.path, totals.state().nonce)))


def remove(path: str, schema: int, *, dry_run: bool = False) -> list[str]:
    """Remove the archive, and the slots of the dead: their paths.

    Raises PublishError, UntrustedPathError, or LockTimeoutError where another process holds the archive.
    dry_run: only look.
    """
    where = archive.archive_name(path)
    with fs.Directory(path) as directory:
        found = [slot for _, slot in names(path) if not shared.is_held(slot)]
        exists = fs.identity_of(where) is not None
        if dry_run:
            return [*[where][: int(exists)], *found]
        if exists:
            directory.check_ours(os.path.basename(where))
            with archive.to_write(path, schema) as totals:
                if totals is None:
                    raise LockTimeoutError("the metrics are in use: try later", path=where)
                removed = list(_remove_dead(directory, found))
                directory.unlink(os.path.basename(where))
                return [where, *removed]
        return list(_remove_dead(directory, found))


def _remove_dead(directory: fs.Directory, slots: Sequence[str]) -> Iterator[str]:
    for where in slots:
        with contextlib.suppress(UntrustedPathError), _left(where) as is_dead:
            if is_dead:
                directory.check_ours(os.path.basename(where))
                directory.unlink(os.path.basename(where))
                yield where


_logged: set[tuple[str, str]] = set()


def log_once(event: str, path: str, text: str, level: int = logging.WARNING) -> None:
    if (event, path) not in _logged:
        _logged.add((event, path))
        log.log(level, "%s: %s", path, text, extra={"event": event, "path": path})
