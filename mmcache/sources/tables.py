"""One read transaction over all collections of a SQLite database, streamed row by row."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping

from ..errors import BuildError, SourceError
from .base import Row, flat
from .catalog import Catalog
from .conditions import storable
from .connections import Connection, Connections
from .decoding import source_records
from .mappings import with_paths
from .rowkeys import key_of, keyed
from .statements import Plan
from .tolerant import tolerant
from .vectors import Decoders, Learned

__all__ = ["TableReading"]


class TableReading:
    """One read transaction; made by `SQLiteSource.read`, and good until that ends."""

    def __init__(
        self,
        connections: Connections,
        connection: Connection,
        catalog: Catalog,
        plans: dict[str, Plan],
        shard: int | None = None,
    ) -> None:
        self._connections = connections
        self._connection: Connection | None = connection
        self._catalog = catalog
        self._plans = plans
        self._shard = shard
        self._decoders = {name: Decoders(plan.schema) for name, plan in plans.items()}

    def dtypes(self, collection: str) -> Mapping[str, str]:
        """See `IterableSource.dtypes`."""
        return self._decoders[self._catalog[collection].name].dtypes

    def learned(self, collection: str) -> Learned:
        """See `IterableSource.learned`."""
        return self._decoders[self._catalog[collection].name].learned

    def close(self) -> None:
        """The connection is another reader's from now on."""
        self._connection = None

    def count(self, collection: str) -> int | None:
        """Exact for a table, from its smallest index where it has one; None for a query or view."""
        sql = self._plans[self._catalog[collection].name].count
        if sql is None:
            return None
        try:
            return _counted(self._lent(), sql)
        except sqlite3.Error as error:
            raise self._connections.error(error) from error

    def records(self, collection: str) -> Iterator[Row]:
        plan = self._plans[self._catalog[collection].name]
        try:
            rows = keyed(plan, tolerant(self._lent(), plan, plan.all))
            records = source_records(plan, rows, self._decoders[self._catalog[collection].name])
            fields = flat(plan.names)
            has_paths = not set(plan.schema.index).issubset(fields)
            yield from with_paths(plan.schema, fields, records, self._shard) if has_paths else records
        except BuildError as error:
            error.path = self._connections.path
            raise
        except sqlite3.Error as error:
            if "Could not decode" in str(error):
                raise self._undecodable(plan) from error
            raise self._connections.error(error) from error

    def _lent(self) -> Connection:
        if self._connection is None:
            raise SourceError("the read is over; use it inside `with source.read()`", path=self._connections.path)
        return self._connection

    def _undecodable(self, plan: Plan) -> BuildError:
        """Whose text is not UTF-8. sqlite3 does not say, so read again, to the first row that has such text."""
        connection, schema = self._lent(), plan.schema
        connection.raw.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
        try:
            for row in connection.execute(plan.all):
                for name, value in zip((*flat(plan.names), *schema.embeddings), row, strict=False):
                    if isinstance(value, str) and not storable(value):
                        reason = f"the text of column {name!r} is not valid UTF-8; store such bytes as a BLOB"
                        error = BuildError.of(schema.name, key_of(row, plan.width), reason)
                        error.path = self._connections.path
                        return error
        finally:
            connection.raw.text_factory = str
        return BuildError.of(schema.name, None, "text that is not valid UTF-8")


def _counted(connection: Connection, sql: str) -> int:
    """From the table itself where its smallest index has a collation that is not known here."""
    try:
        row = connection.execute(sql).fetchone()
    except sqlite3.OperationalError as error:
        if "no such collation" not in str(error):
            raise
        row = connection.execute(f"{sql} NOT INDEXED").fetchone()
    return int(row[0])
