"""Any database that SQLAlchemy reaches as the source of truth. Needs the extra `sqlalchemy`, and a driver.

A build is one read of one state of the database, streamed by a cursor of the server's. Lookups use the same columns
with a condition. Every row that they give is checked by the same rules as the file's (`query.terms_of`, keys equal
by type and value), so that collations and types of a database never make the two tiers differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, ClassVar, Generic, Self, overload

from sqlalchemy.engine import URL, Engine

from ..errors import BuildError, SourceError
from ..query import Query, matcher
from ..schema import AnySchema, R_co, Schema
from ..shown import internal
from .base import Changes, Invalid, Key, Reading, Row, SourceRecord, flat
from .casts import check_unmapped
from .catalog import Catalog
from .mappings import only_chosen, replaces, with_paths
from .sql_databases import database_of
from .sql_links import Link, Links
from .sql_planned import SQLPlans
from .sql_plans import SQLPlan, reduced
from .sql_urls import has_secrets, path_of_sqlite, shown
from .sql_writes import SQLWrites
from .tracking import LIMIT, Tracking

__all__ = ["SQLAlchemySource"]

MAX_IDS = 512
"""Keys that are looked up by one statement."""


@internal("given", "kind", "remade", "with_rules")
class SQLAlchemySource(Generic[R_co]):
    """The tables, views or queries of one database, one collection for each schema.

    >>> source = mmcache.SQLAlchemySource("sqlite:///items.db", Schema("items", index=("kind",)))
    >>> with mmcache.open("items.mmc", source) as items:
    ...     items["a"]["kind"], items.where(kind="prompt").ids, source.url
    ('tool', ['c'], 'sqlite:///...items.db')
    >>> source.close()

    engine_or_url: an engine, which stays the caller's, or a URL. By a URL alone this source goes to other processes
        and into files: what else an engine was made with (`creator`, `connect_args`, listeners) does not go along.
    schemas: as of `SQLiteSource`. Without a key a table's primary key is taken, of a view or query the column `id`.
        A table of another schema of the database is `table="schema.table"`.
    fingerprint: a SELECT whose rows differ whenever the source has changed, as
        `SELECT count(*), max(updated_at) FROM items`. It must not be equal by mistake: a transaction that commits late
        may bring an older `updated_at`. Without it PostgreSQL tells whether any transaction of the server wrote;
        SQLite what its files tell; of any other database a cache knows only its own age (`ttl`).
    timeout: seconds that connecting may take.

    Records come in the order of the primary key, or of the collection's key where there is none; those of a query in
    the order of its ORDER BY. Moments with a zone are given in UTC. One consistent read: REPEATABLE READ of PostgreSQL,
    a consistent snapshot of MariaDB and MySQL, a transaction of SQLite; of any other a transaction as it has them.

    Safe to use from several threads. After a fork the child makes connections of its own.
    """

    kind: ClassVar[str] = "sqlalchemy"
    _gives_plain: ClassVar[bool] = True

    @overload
    def __init__(
        self,
        engine_or_url: Engine | URL | str,
        first: Schema[R_co],
        /,
        *others: AnySchema,
        fingerprint: str | None = None,
        timeout: float = 10.0,
    ) -> None: ...
    @overload
    def __init__(
        self,
        engine_or_url: Engine | URL | str,
        *schemas: Schema[R_co],
        fingerprint: str | None = None,
        timeout: float = 10.0,
    ) -> None: ...
    def __init__(
        self,
        engine_or_url: Engine | URL | str,
        *schemas: AnySchema,
        fingerprint: str | None = None,
        timeout: float = 10.0,
    ) -> None:
        self._catalog = Catalog(schemas)
        check_unmapped(schemas, "a database")
        if tracking := [schema.name for schema in schemas if schema.tracks]:
            raise ValueError(f"Schema {tracking[0]!r}: tracks= is for SQLite; by URL only tables are tracked")
        self._links = Links(engine_or_url, timeout)
        self._database = database_of(self._links.url.get_backend_name())
        self._plan_by(fingerprint)

    def _plan_by(self, fingerprint: str | None) -> None:
        self._plans = SQLPlans(self._database, self._links.name)
        self._writes = SQLWrites(self._links, self._database, self._catalog, self._plans, fingerprint)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._links.name!r}, {', '.join(self._catalog)})"

    def __getstate__(self) -> dict[str, Any]:
        """The URL with its password. Raises TypeError for a database in memory."""
        if self.spec() is None:
            raise TypeError("a database in memory is of one process; its source cannot be pickled")
        url = self._links.url.render_as_string(hide_password=False)
        schemas, timeout = tuple(self._catalog.values()), self._links.timeout
        return {"url": url, "schemas": schemas, "fingerprint": self._writes.asked, "timeout": timeout}

    def __setstate__(self, state: dict[str, Any]) -> None:
        options = {"fingerprint": state["fingerprint"], "timeout": state["timeout"]}
        SQLAlchemySource.__init__(self, state["url"], *state["schemas"], **options)

    @property
    def url(self) -> str:
        """The database's, without a password."""
        return self._links.name

    @property
    def schemas(self) -> tuple[AnySchema, ...]:
        """With their keys, and names as the database spells them; as given while it cannot be asked."""
        if len(self._plans.resolved) < len(self._catalog):
            with suppress(SourceError, BuildError), self._taken() as link:
                for schema in self._catalog.values():
                    with suppress(BuildError):  # no such table yet
                        self._plans.of(link, schema)
        return tuple(self._plans.resolved.get(name, schema) for name, schema in self._catalog.items())

    @property
    def schema(self) -> Schema[R_co]:
        """Of the default collection."""
        return self.schemas[0]

    @contextmanager
    def read(self) -> Iterator[Reading]:
        """One consistent read, begun here. Raises SourceError, or BuildError for a schema the database cannot meet."""
        with self._taken() as link:
            plans = {name: self._plans.made(link, schema) for name, schema in self._catalog.items()}
            if any(plan.has_moments for plan in plans.values()):
                self._database.settle(link)
            reading = SQLReading(link, self._catalog, plans)
            try:
                yield reading
            finally:
                reading.close()

    @contextmanager
    def _taken(self) -> Iterator[Link]:
        with self._links.take() as link:
            self._database.begin(link)
            yield link

    @contextmanager
    def _asked(self, collection: str) -> Iterator[tuple[Link, SQLPlan]]:
        """For lookups. Raises SourceError alone."""
        schema = self._catalog[collection]
        try:
            with self._taken() as link:
                plan = self._plans.of(link, schema)
                if plan.has_moments:
                    self._database.settle(link)
                yield link, plan
        except BuildError as error:
            raise SourceError(error.message, path=self.url) from error
        except SourceError:
            self._plans.forget()
            raise

    def with_rules(self, **rules: Any) -> Self:
        """See `sources.with_rules`. By the same engine."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._catalog = Catalog(replace(schema, **rules) for schema in self._catalog.values())
        other._plan_by(self._writes.asked)
        return other

    def scans(self, collection: str) -> bool:
        """Whether a lookup there may cost a read of the whole collection: that of a query. Not where nothing tells of
        changes: then only a lookup finds what the file lacks."""
        return self._writes.tells and self._catalog[collection].query is not None

    def fetch(self, collection: str, ids: Sequence[Key]) -> list[Row | None]:
        """Looked up by the key's columns, `MAX_IDS` at a time, in one consistent read."""
        with self._asked(collection) as (link, plan):
            found = self._looked_up(link, plan, ids)
        return [found.get(key) for key in ids]

    def _looked_up(self, link: Link, plan: SQLPlan, ids: Iterable[Key]) -> dict[Key, SourceRecord | Invalid]:
        found: dict[Key, SourceRecord | Invalid] = {}
        lookable = plan.lookable(ids)
        if not lookable:
            return found
        wanted, decoders = list(lookable), self._plans.decoders(link, plan)
        # Of several rows with one key the first or last in the order of a query: only the query itself has that.
        is_whole = not plan.order and plan.schema.on_duplicate != "raise"
        for start in range(0, len(wanted), len(wanted) if is_whole else MAX_IDS):
            some = wanted[start : start + (len(wanted) if is_whole else MAX_IDS)]
            if is_whole:
                rows = plan.rows(link)
            else:
                clause, parameters = plan.by_key([lookable[key] for key in some], MAX_IDS)
                rows = link.rows(f"{plan.looking} WHERE {clause} {plan.order}", parameters)
            keys = frozenset(some)
            for row in plan.records(rows, decoders):
                key = row.key if isinstance(row, Invalid) else row.values[0]
                if key in keys and replaces(plan.schema, found.get(key)):
                    found[key] = row
        return found

    def in_order(self, collection: str, ids: Sequence[Key]) -> list[Key]:
        """See `OrderedSource`. A table or view is asked by the key's columns; a query is run whole."""
        found: dict[Key, None] = {}
        with self._asked(collection) as (link, plan):
            lookable = plan.lookable(ids)
            if not lookable:
                return []
            rows = plan.rows(link)
            if plan.order:
                clause, parameters = plan.by_key(list(lookable.values()), 1 << 15)
                rows = link.rows(f"{plan.looking} WHERE {clause} {plan.order}", parameters)
            is_last = plan.schema.on_duplicate == "last"
            for record in plan.records(rows, plan.decoders()):
                key = record.key if isinstance(record, Invalid) else record.values[0]
                if key not in lookable:
                    continue
                if is_last:
                    found.pop(key, None)
                found[key] = None
        return list(found)

    def find(self, collection: str, query: Query) -> Iterator[SourceRecord]:
        """A query is run whole. Streams, and holds a connection until it is exhausted or closed."""
        with self._asked(collection) as (link, plan):
            matches = self._matches(link, plan, query)
            if plan.schema.on_duplicate == "raise":
                yield from matches
            else:
                yield from only_chosen(plan.schema, matches, lambda keys: self._looked_up(link, plan, keys))

    def _matches(self, link: Link, plan: SQLPlan, query: Query) -> Iterator[SourceRecord]:
        where = plan.condition(query)
        if where is None:
            return
        rows = plan.rows(link)
        if plan.order:
            rows = link.rows(f"{plan.looking} WHERE {where[0]} {plan.order}", where[1])
        answers = matcher(query)
        for record in plan.records(rows, self._plans.decoders(link, plan)):
            if not isinstance(record, Invalid) and answers(record.names, record.values):
                yield record

    def fingerprint(self) -> bytes:
        """Of the rows of `fingerprint=`, where that was given. Else of PostgreSQL: differs when any transaction that
        wrote to the server has ended since; where it is tracked, only when one wrote to a table of these collections,
        or was the last of those that were older. Of SQLite: as of `SQLiteSource`. Of any other database 32 zeros, which
        say that it cannot tell. Raises SourceError."""
        return self._writes.fingerprint()

    def changes(self, since: bytes) -> Changes | None:
        """See `TrackedSource`. Of a PostgreSQL or SQLite database that is tracked (`track`); None of any other."""
        return self._writes.changes(since)

    def track(self, *, limit: int = LIMIT) -> Tracking:
        """Install in a PostgreSQL or SQLite database what tells which records any writer changes; docs/tracking.md says
        what and at what cost. Idempotent, and the repair when a table was made anew. `limit`: changes that are
        remembered.

        Raises SourceError for a view or query, for any other database, and where it cannot write; ValueError where
        `fingerprint=` tells of changes.

        >>> source = mmcache.SQLAlchemySource("sqlite:///items.db", Schema("items"))
        >>> source.track().changed, len(source.untrack()) > 0, source.close()
        (True, True, None)
        """
        return self._writes.track(limit)

    def untrack(self) -> tuple[str, ...]:
        """Remove all that `track` installed, for whichever tables; the names. Raises SourceError."""
        return self._writes.untrack()

    def spec(self) -> dict[str, Any] | None:
        """The URL without its password, and the SELECT of `fingerprint=`; None for a database in memory."""
        url = self._links.url
        if url.get_backend_name() == "sqlite" and path_of_sqlite(url) is None:
            return None
        found = {"kind": self.kind, "url": shown(url)}
        asked = self._writes.asked
        return found if asked is None else {**found, "fingerprint": asked}

    def given(self) -> dict[str, Any]:
        """What a process hands to another one besides: the URL with its password, if it has one."""
        url = self._links.url
        return {"url": url.render_as_string(hide_password=False)} if has_secrets(url) else {}

    @classmethod
    def remade(cls, spec: Mapping[str, Any], schemas: Iterable[AnySchema], given: Mapping[str, Any]) -> Self:
        """From a spec, and the URL with its password where the database asks for one. Raises SourceError."""
        url, fingerprint = given.get("url") or spec.get("url"), spec.get("fingerprint")
        if not isinstance(url, str) or not url:
            raise SourceError(f"a source of kind {cls.kind!r} needs a url, found {url!r}")
        source = cls(url, *schemas, fingerprint=fingerprint if isinstance(fingerprint, str) else None)
        if not given.get("url"):
            source._links.hint = "; a file holds no password: if one is needed, give the URL with it"
        return source

    def available(self, schemas: Iterable[AnySchema]) -> tuple[AnySchema, ...]:
        """See `EvolvingSource`. Asks the database for its columns, and reads no row. Raises SourceError."""
        with self._taken() as link:
            found = [reduced(link, self._database, schema) for schema in schemas]
        return tuple(schema for schema in found if schema is not None)

    def close(self) -> None:
        """Close the connections of an engine of its own. Not final: a later call makes new ones."""
        self._links.close()
        self._writes.close()


class SQLReading:
    """One consistent read; made by `SQLAlchemySource.read`, and good until that ends."""

    def __init__(self, link: Link, catalog: Catalog, plans: dict[str, SQLPlan]) -> None:
        self._link: Link | None = link
        self._path = link.name
        self._catalog = catalog
        self._plans = plans
        self._decoders = {name: plan.decoders() for name, plan in plans.items()}

    def dtypes(self, collection: str) -> Mapping[str, str]:
        """See `IterableSource.dtypes`."""
        return self._decoders[self._catalog[collection].name].dtypes

    def close(self) -> None:
        """The connection is another reader's from now on."""
        self._link = None

    def count(self, collection: str) -> int | None:
        """Exact for a table with a primary key; None for any other, and for a query or view."""
        sql = self._plans[self._catalog[collection].name].count
        return None if sql is None else int(self._lent().execute(sql).scalar_one())

    def records(self, collection: str) -> Iterator[Row]:
        plan = self._plans[self._catalog[collection].name]
        try:
            records = plan.records(plan.rows(self._lent()), self._decoders[plan.schema.name])
            fields = flat(plan.names)
            has_paths = not set(plan.schema.index).issubset(fields)
            yield from with_paths(plan.schema, fields, records) if has_paths else records
        except BuildError as error:
            error.path = self._path
            raise

    def _lent(self) -> Link:
        if self._link is None:
            raise SourceError("the read is over; use it inside `with source.read()`", path=self._path)
        return self._link
