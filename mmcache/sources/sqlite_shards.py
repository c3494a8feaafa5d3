"""The parts of a SQLite database that several processes read: ranges of rowids, each in a transaction of its own.

So they are one consistent read only where nothing was written meanwhile, which the fingerprint tells: see
`sharing.sharded`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

from ..errors import SourceError
from ..schema import R_co, Schema
from .connections import Connection
from .names import origin_of, rowid_of
from .planned import Plans
from .sqlite import SQLiteSource

__all__ = ["SQLiteShard", "shards_of"]

_NOTHING = "0"
_SMALLEST = -(2**63) + 1
"""Of the ints that a literal of SQL can hold."""


class SQLiteShard(SQLiteSource[R_co]):
    """Some rows of a database, whose other answers are those of the whole. number: of the shard, from 0. within: the
    condition of its rows, by collection."""

    _gives_plain: ClassVar[bool] = True

    @classmethod
    def of(cls, source: SQLiteSource[R_co], number: int, within: Mapping[str, str]) -> SQLiteShard[R_co]:
        shard = cls.__new__(cls)
        shard.__setstate__(source.__getstate__() | {"shard": number, "within": dict(within)})
        return shard

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"shard": self._shard, "within": self._within}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._shard = state["shard"]
        self._within: dict[str, str] = state["within"]
        self._plans = Plans(self._connections, self._catalog, self._within)


def shards_of(source: SQLiteSource[R_co], n: int) -> list[SQLiteShard[R_co]]:
    """At most n parts, of equal ranges of rowids. What has none is in the first. Raises SourceError, also where that is
    all."""
    within: dict[str, list[str]] = {}
    with source._connections.take() as connection:
        try:
            for schema in source.schemas:
                within[schema.name] = _ranges(connection, schema, n)
        except (sqlite3.Error, ValueError) as error:
            raise SourceError(f"cannot be read in shards: {error}", path=source.path) from error
    if n > 1 and all(ranges[1] == _NOTHING for ranges in within.values()):
        raise SourceError(
            "cannot be read in shards: views, queries and tables without rowids are read whole; build without shards=",
            path=source.path,
        )
    return [SQLiteShard.of(source, i, {name: ranges[i] for name, ranges in within.items()}) for i in range(n)]


def _ranges(connection: Connection, schema: Schema, n: int) -> list[str]:
    origin = origin_of(connection, schema)
    rowid = rowid_of(connection, origin)
    if rowid is None or n == 1:
        return ["1", *[_NOTHING] * (n - 1)]
    low, high = connection.execute(f"SELECT min(s.{rowid}), max(s.{rowid}) FROM {origin.body} AS s").fetchone()
    low, high = (0, 0) if low is None else (low, high)
    edges = [max(low + (high - low + 1) * i // n, _SMALLEST) for i in range(1, n)]
    # The first and the last have no other end: what is written there meanwhile is read, too.
    return [
        f"s.{rowid} < {edges[0]}",
        *(f"s.{rowid} >= {begin} AND s.{rowid} < {end}" for begin, end in pairwise(edges)),
        f"s.{rowid} >= {edges[-1]}",
    ]
