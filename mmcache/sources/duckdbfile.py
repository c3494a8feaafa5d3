"""Tables and queries of a DuckDB database file. Needs the extras `duckdb` and `arrow`.

Read by DuckDB alone, in batches of Arrow: to open and close the file by other means would drop its locks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, ClassVar

import duckdb

from ..errors import BuildError, SourceError
from ..schema import R_co, Schema
from ..values import Default
from .arrow import ArrowFileSource, ArrowReading, of_batches
from .base import Where
from .parts import Part
from .recognize import content_of

__all__ = ["DuckDBSource"]

_BATCH_ROWS = 4096
_CONFIG: dict[str, Any] = {"enable_external_access": "false", "memory_limit": "512MB"}
"""A query may come from a cache file, and reaches nothing but the database. The limit bounds what DuckDB remembers."""


class DuckDBReading(ArrowReading):
    """See `DuckDBSource`."""

    failures = (*ArrowReading.failures, duckdb.Error)

    def begin(self) -> None:
        """Open the database. Raises SourceError."""
        try:
            connection = duckdb.connect(self.source.path, read_only=True, config=_CONFIG)
            self._connection = self._held.enter_context(connection)
            connection.execute("SET enable_progress_bar = false")
        except (duckdb.Error, OSError) as error:
            raise self.source._error(error) from error

    def _items(self, schema: Schema) -> Iterator[Any]:
        name = (schema.table or schema.name).replace('"', '""')
        sql = schema.query or f'SELECT * FROM "{name}"'
        try:
            relation = self._connection.sql(sql)
            if relation is None:
                raise BuildError.of(schema.name, None, "query= gives no records; it must be a SELECT")
            read = getattr(relation, "to_arrow_reader", None) or relation.fetch_arrow_reader
            batches = read(_BATCH_ROWS)
        except duckdb.CatalogException as error:
            what = str(error).partition("\n")[0]
            raise BuildError.of(schema.name, None, f"{what}; the database has: {self._tables()}") from error
        except (duckdb.ParserException, duckdb.BinderException) as error:
            raise BuildError.of(schema.name, None, str(error)) from error
        for item in of_batches(batches, schema):
            self._seen += 1
            yield item

    def _tables(self) -> str:
        sql = "SELECT table_name FROM information_schema.tables ORDER BY 1 LIMIT 50"
        return ", ".join(str(name) for (name,) in self._connection.execute(sql).fetchall()) or "none"


class DuckDBSource(ArrowFileSource[R_co]):
    """A table, view or query of a DuckDB database, one record a row. See `FileSource`, also for lookups.

    The table is the collection's name, or `Schema(table=)` or `Schema(query=)` say otherwise; a query reaches no other
    file. The database is opened to be read only, which DuckDB refuses while another process writes.

    >>> import duckdb
    >>> with duckdb.connect("shop.duckdb") as db:
    ...     _ = db.sql("CREATE TABLE items AS SELECT range AS id, range * 2 AS size FROM range(3)")
    >>> dict(mmcache.build("items.mmc", mmcache.DuckDBSource("shop.duckdb", Schema("items"))).records)
    {'items': 3}
    """

    kind = "duckdb"
    suffixes = (".duckdb", ".ddb")
    _reads = DuckDBReading
    _gives_plain: ClassVar[bool] = True
    _not_for_files: ClassVar[tuple[str, ...]] = ("tracks",)

    def __init__(self, path: Where, schema: Schema[R_co], *, default: Default | str | None = None) -> None:
        super().__init__(path, schema, default=default)

    def parts(self) -> list[Part]:
        """The database, and what was not moved to it yet."""
        log = self.path + ".wal"
        return [Part(self.path), Part(log)] if os.path.exists(log) else [Part(self.path)]

    def _error(self, error: Exception, path: str | None = None) -> SourceError:
        if isinstance(error, duckdb.Error):
            what = f"cannot read the DuckDB database: {error}{content_of(self.path, self.kind)}"
            return SourceError(what, path=self.path)
        return super()._error(error, path)
