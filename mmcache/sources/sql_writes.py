"""Whether a database that SQLAlchemy reaches was written to, and which of its records. The twin of `writes`.

What tells: a SELECT of the caller's; the files of a SQLite database; the log of a PostgreSQL database that is tracked
(`sql_tracking`), or else the server's transactions. Any other database tells nothing.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

from ..errors import BuildError, SourceError
from .base import Changes
from .catalog import Catalog
from .sql_databases import Database
from .sql_links import Link, Links
from .sql_planned import SQLPlans
from .sql_plans import SQLPlan
from .sql_tracking import changes_since, is_installed, track, tracked, untrack
from .sql_urls import path_of_sqlite
from .tracking import Tracking

__all__ = ["SQLWrites"]


class SQLWrites:
    """Of one source. asked: the SELECT of `fingerprint=`, or None."""

    def __init__(self, links: Links, database: Database, catalog: Catalog, plans: SQLPlans, asked: str | None) -> None:
        self._links = links
        self._database = database
        self._catalog = catalog
        self._plans = plans
        self.asked = asked
        self._local: Any = None

    @property
    def tells(self) -> bool:
        """Whether anything tells of changes."""
        return self.asked is not None or self._database.tells or path_of_sqlite(self._links.url) is not None

    def fingerprint(self) -> bytes:
        """See `SQLAlchemySource.fingerprint`."""
        if self.asked is None and (source := self._as_sqlite()) is not None:
            found: bytes = source.fingerprint()
            return found
        with self._links.take() as link:
            if self.asked is None:
                self._database.begin(link)
                plans = self._tracked_plans(link)
                position = None if plans is None else tracked(link, plans)
                return self._database.state(link) or bytes(32) if position is None else position.fingerprint
            rows = [tuple(row) for row in link.execute(self.asked).fetchall()]
        return blake2b(repr(rows).encode("utf-8", "surrogatepass"), digest_size=32).digest()

    def changes(self, since: bytes) -> Changes | None:
        """See `SQLAlchemySource.changes`."""
        if self.asked is not None:
            return None
        if (source := self._as_sqlite()) is not None:
            local: Changes | None = source.changes(since)
            return local
        if not self._database.can_track:
            return None
        with self._links.take() as link:
            self._database.begin(link)
            self._plans.forget()  # the type of a key may be another one
            plans = self._tracked_plans(link)
            return None if plans is None else changes_since(link, plans, since)

    def track(self, limit: int) -> Tracking:
        """See `SQLAlchemySource.track`."""
        if self.asked is not None:
            raise ValueError("fingerprint= tells of changes by itself; leave it out of a source that is tracked")
        if (source := self._as_sqlite()) is not None:
            local: Tracking = source.track(limit=limit)
            return local
        self._check_trackable()
        self._plans.forget()
        schemas, timeout = tuple(self._catalog.values()), self._links.timeout
        return track(self._links, self._database, schemas, limit=limit, timeout=timeout)

    def untrack(self) -> tuple[str, ...]:
        """See `SQLAlchemySource.untrack`."""
        if (source := self._as_sqlite()) is not None:
            local: tuple[str, ...] = source.untrack()
            return local
        self._check_trackable()
        return untrack(self._links, timeout=self._links.timeout)

    def close(self) -> None:
        if self._local is not None:
            self._local.close()

    def _tracked_plans(self, link: Link) -> list[SQLPlan] | None:
        """Of all collections, where there may be a log; None where there is none, or a collection is not there."""
        if not self._database.can_track or not is_installed(link):
            return None
        try:
            return [self._plans.of(link, schema) for schema in self._catalog.values()]
        except BuildError:
            return None

    def _check_trackable(self) -> None:
        if not self._database.can_track:
            reason = "only PostgreSQL and SQLite can be tracked; name a query that tells of changes by fingerprint="
            raise SourceError(reason, path=self._links.name)

    def _as_sqlite(self) -> Any:
        """What looks at the files of a SQLite database; None for any other."""
        path = path_of_sqlite(self._links.url)
        if path is not None and self._local is None:
            from .sqlite import SQLiteSource

            self._local = SQLiteSource(path, *self._catalog.values())
        return self._local
