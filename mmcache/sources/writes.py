"""Whether a SQLite database was written to, and which of its records: from outside by its files, exactly by its log.

A database that is tracked (`tracking`) says itself what any writer changed. Of any other the files say that something
was, to the tick of the file system's clock. Nothing here waits for a writer's lock.
"""

from __future__ import annotations

from ..errors import SourceError
from ..logs import log
from .base import Changes
from .catalog import Catalog
from .connections import BusyError, Connections
from .fingerprint import once_only
from .outside import LastAnswer, outside_of
from .tracking import Tracking, changes_since, track, tracked, untrack

__all__ = ["Writes"]


class Writes:
    """Of one source: what `SQLiteSource` says of its fingerprint, changes and tracking is found here."""

    def __init__(self, connections: Connections, catalog: Catalog) -> None:
        self._connections = connections
        self._catalog = catalog
        # Each is replaced whole, so that threads need no lock, and is as true in a forked child.
        self.last_answer: LastAnswer | None = None
        self._identity: tuple[object, ...] | None = None
        self._tracked = False

    def fingerprint(self) -> bytes:
        """See `SQLiteSource.fingerprint`."""
        outside, wait = self._outside()
        last = self.last_answer
        if last is not None and last.outside == outside and not wait:
            return last.answer
        # Looked at from outside first: a write in between makes the next look ask again, and never goes unseen.
        try:
            exact = self._exact()
        except BusyError:
            return once_only(outside)
        if exact is None and wait:
            return once_only(outside)
        answer = outside if exact is None else exact
        if not wait:
            self.last_answer = LastAnswer(outside, answer)
        return answer

    def changes(self, since: bytes) -> Changes | None:
        """See `SQLiteSource.changes`."""
        self._outside()
        try:
            with self._connections.at_once() as connection:
                return changes_since(connection, tuple(self._catalog.values()), since)
        except BusyError:
            return None

    def track(self, limit: int) -> Tracking:
        """See `SQLiteSource.track`."""
        opening = self._connections.opening
        if opening.immutable:
            raise SourceError("tracking writes into the database, which immutable=True rules out", path=opening.path)
        schemas = tuple(self._catalog.values())
        return track(opening.path, schemas, limit=limit, timeout=opening.timeout, connect=opening.connect)

    def untrack(self) -> tuple[str, ...]:
        """See `SQLiteSource.untrack`."""
        opening = self._connections.opening
        return untrack(opening.path, timeout=opening.timeout, connect=opening.connect)

    def _outside(self) -> tuple[bytes, float]:
        """What the database and its -wal look like, and `unsettled`. Closes connections to a file that was replaced."""
        path = self._connections.path
        try:
            outside = outside_of(path, self._attached())
        except OSError as error:
            self._connections.close()  # or they would go on reading a database that is gone
            self._identity = None
            raise SourceError(f"cannot look at the database: {error.strerror}", path=path) from error
        if outside.identity != self._identity:
            self._connections.close()
            self._identity = outside.identity
        return outside.fingerprint, outside.wait

    def _attached(self) -> tuple[str, ...]:
        """The files of databases that `connect` attaches. Raises SourceError."""
        if self._connections.attached is None:
            with self._connections.take():
                pass
        return self._connections.attached or ()

    def _exact(self) -> bytes | None:
        """The fingerprint of a tracked database; None for another, or one that cannot be read and never was tracked."""
        try:
            with self._connections.at_once() as connection:
                position = tracked(connection, tuple(self._catalog.values()))
        except SourceError:
            if self._tracked:
                raise
            return None
        if position is None and self._tracked:
            path = self._connections.path
            text = "%s: is not tracked any more: a table was altered or made anew; `mmcache track` repairs that"
            log.warning(text, path, extra={"event": "untracked", "path": path})
        self._tracked = position is not None
        return position.fingerprint if position is not None else None
