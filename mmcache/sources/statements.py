"""SQL from a schema: which columns, from where, in which order, and under what condition.

Pure but for looking at what the database has. Two rules make the rest of the package simple:

- Columns are always qualified (`s."name"`), because SQLite takes an unknown double-quoted name for a string.
- A condition gives a *superset*: it takes indexes, affinities, collations and JSON1 as they are, and the caller checks
  each row. It must only never lose one.

Which table, and the names of columns that a schema gives, are made out by `names`.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..format.keys import Key
from ..query import Query, path_of, place_of
from ..schema import Schema
from .conditions import Column, clause
from .connections import Connection
from .names import Origin, listed, origin_of, quoted, resolved, rowid_of

__all__ = ["Plan", "by_key", "condition", "keys_in_order", "make_plan"]

_MAX_EQUAL = 512
"""More keys of several columns than this are not compared one by one; SQLite has a limit to the depth of conditions."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to read one collection; the pieces of its statements.

    schema: resolved.
    names: the fields of a record, as in a `SourceRecord`. The key's columns come first in a row, the embeddings last.
    width: columns of the key.
    keys: these columns, as they are written in a condition.
    collations: of the key's columns, where they are not BINARY: what they make equal are different keys here.
    indexed: whether a few keys of several columns are looked up by an index. Not asked for a key of one.
    select: "SELECT ..." up to FROM.
    lookup: FROM clause where the order does not matter, so that SQLite may use any index of a table below a query.
    stable: FROM clause whose order is that of `all` under any condition.
    order: ORDER BY clause, or "" where `stable` has its own order.
    decode: positions in `names` of columns of JSON text.
    count: statement that counts the records, or None where only reading them would.
    sought: the columns in which indexed fields are, as they are written in a condition.
    affinities: of the columns of a table; of a view or query nothing is known.
    is_utf8: whether SQLite orders text as its UTF-8 bytes are.
    scans: whether a look-up of one key reads a whole table.
    within: the condition of the rows that `all` gives.
    """

    schema: Schema
    names: tuple[Any, ...]
    width: int
    keys: tuple[str, ...]
    collations: tuple[str, ...]
    indexed: bool
    select: str
    lookup: str
    stable: str
    order: str
    decode: tuple[int, ...]
    count: str | None
    sought: Mapping[str, str]
    affinities: Mapping[str, str]
    is_utf8: bool
    scans: bool = False
    within: str = "1"

    @property
    def all(self) -> str:
        """The statement that gives every row."""
        # A condition keeps SQLite from merging `stable` with the outer query, where it might read an index that covers
        # the columns asked for, and not the table. So `all` has one, too.
        return f"{self.select} {self.stable} WHERE {self.within} {self.order}"


def make_plan(connection: Connection, schema: Schema) -> Plan:
    """The plan for one schema, checked against what the database has. Raises ValueError with the reason."""
    origin = origin_of(connection, schema)
    schema = resolved(connection, schema, origin)
    body, order, count = origin.body, "", None
    if origin.kind == "table":
        order, count = _order(connection, origin), f"SELECT count(*) FROM {body}"
    fields = _choose(schema, origin)
    keys = schema.key_fields
    selected = (*keys, *fields, *schema.embeddings)
    names = (schema.key, *fields)
    lookup = f"FROM {body} AS s"
    columns, collations = zip(*(_written(connection, body, name) for name in keys), strict=True)
    sought = {name: _written(connection, body, name)[0] for name in fields if name in _roots(schema, origin.columns)}
    select = "SELECT " + ", ".join(f"s.{quoted(name)}" for name in selected)
    plan = Plan(
        schema=schema,
        names=names,
        width=len(keys),
        keys=columns,
        collations=tuple(filter(None, collations)),
        indexed=len(keys) > 1 and _is_indexed(connection, select, lookup, columns),
        select=select,
        lookup=lookup,
        # LIMIT keeps SQLite from merging the inner query with the outer, and so its order as it is.
        stable=lookup if order else f"FROM (SELECT * FROM {body} LIMIT -1) AS s",
        order=order,
        decode=tuple(i for i, name in enumerate(names) if name in schema.json),
        count=count,
        sought=sought | dict(zip(keys, columns, strict=True)),
        affinities=_affinities(connection, origin),
        is_utf8=connection.execute("PRAGMA encoding").fetchone()[0] == "UTF-8",
    )
    return replace(plan, scans=_scans(connection, *by_key(plan, [_anything(plan.width)], 512)))


def _anything(width: int) -> Key:
    return "" if width == 1 else ("",) * width


def _scans(connection: Connection, sql: str, parameters: Sequence[Any]) -> bool:
    """Whether a statement reads a whole table, and not only what a subquery of its own gives."""
    steps = [row[3].split() for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", parameters)]
    given = Counter(words[1] for words in steps if words[0] in ("CO-ROUTINE", "MATERIALIZE") and len(words) > 1)
    read = Counter(words[1] for words in steps if words[0] == "SCAN" and words[-2:] != ["CONSTANT", "ROW"])
    return any("AUTOMATIC" in words for words in steps) or any(not name.startswith("(") for name in read - given)


def _affinities(connection: Connection, origin: Origin) -> dict[str, str]:
    if origin.kind != "table":
        return {}
    types = connection.execute("SELECT name, type FROM pragma_table_xinfo(?)", (origin.name,))
    found = {name: _affinity(declared.upper()) for name, declared in types}
    rowid = rowid_of(connection, origin)
    return found if rowid is None else {rowid: "INTEGER"} | found


def _affinity(declared: str) -> str:
    """SQLite's rules, datatype3.html 3.1."""
    for parts, affinity in (
        (("INT",), "INTEGER"),
        (("CHAR", "CLOB", "TEXT"), "TEXT"),
        (("BLOB",), "BLOB"),
        (("REAL", "FLOA", "DOUB"), "REAL"),
    ):
        if any(part in declared for part in parts):
            return affinity
    return "NUMERIC" if declared else "BLOB"


def by_key(plan: Plan, ids: Sequence[Key], limit: int) -> tuple[str, list[Any]]:
    """The statement for some ids, at most `limit`, and its parameters. Where keys may stand twice, its rows come in the
    order of all."""
    clause, parameters = _key_clause(plan, ids, limit)
    if plan.schema.on_duplicate != "raise":
        return f"{plan.select} {plan.stable} WHERE {clause} {plan.order}", parameters
    return f"{plan.select} {plan.lookup} WHERE {clause}", parameters


def keys_in_order(plan: Plan, ids: Sequence[Key], limit: int) -> tuple[str, list[Any]]:
    """The statement that gives these keys as the first values of its rows, among others, in the order of all records.

    limit: parameters that a statement takes; for more ids, all rows are asked for.

    The order of a query or view is that of its very statement: with a condition or fewer columns, SQLite might go
    another way through the tables below it.
    """
    if not plan.order:
        return plan.all, []
    select = f"SELECT {', '.join(plan.keys)} {plan.stable}"
    if len(ids) * plan.width > limit:
        return f"{select} {plan.order}", []
    clause, parameters = _key_clause(plan, ids, limit)
    return f"{select} WHERE {clause} {plan.order}", parameters


def _key_clause(plan: Plan, ids: Sequence[Key], limit: int) -> tuple[str, list[Any]]:
    """A condition on the key. The number of ids is filled up to a power of two, so that few statements are prepared."""
    size = min(limit // plan.width, 1 << (len(ids) - 1).bit_length())
    filled: list[Any] = [*ids, *[ids[-1]] * (size - len(ids))]
    if plan.width == 1:
        return f"{plan.keys[0]} IN ({', '.join('?' * size)})", filled
    parameters = [part for key in filled for part in key]
    if plan.indexed and size <= _MAX_EQUAL:
        return f"({_equal(plan.keys, size)})", parameters
    # One look at each row. SQLite uses no index of several columns for this form.
    row = f"({', '.join('?' * plan.width)})"
    return f"({', '.join(plan.keys)}) IN (VALUES {', '.join([row] * size)})", parameters


def _equal(columns: Sequence[str], size: int) -> str:
    return " OR ".join([f"({' AND '.join(f'{column} = ?' for column in columns)})"] * size)


def _is_indexed(connection: Connection, select: str, lookup: str, columns: Sequence[str]) -> bool:
    sql = f"EXPLAIN QUERY PLAN {select} {lookup} WHERE {_equal(columns, 2)}"
    steps = connection.execute(sql, [None] * 2 * len(columns)).fetchall()
    return not any(step[3].startswith("SCAN") for step in steps)


def _written(connection: Connection, body: str, name: str) -> tuple[str, str]:
    """A column as it is written in a condition, and its collation, "" if that is BINARY.

    No index of a collation that this connection does not have can be used: such a column is compared by bytes.
    """
    column = f"s.{quoted(name)}"
    # The column of an empty part of a compound gives the other part its collation.
    empty = f"SELECT {column} AS k FROM {body} AS s WHERE 0"
    try:
        sql = f"SELECT t.k = 'A', t.k = 'a ' FROM ({empty} UNION ALL SELECT 'a') AS t"
        is_nocase, is_rtrim = connection.execute(sql).fetchone()
    except sqlite3.OperationalError as error:
        unknown = str(error).partition("no such collation sequence: ")[2]
        if not unknown:
            raise
        return f"{column} COLLATE BINARY", unknown
    return column, "NOCASE" if is_nocase else "RTRIM" if is_rtrim else ""


def condition(plan: Plan, query: Query) -> tuple[str, list[Any]] | None:
    """A condition that holds for every row that answers the query, and perhaps for others; None if none can."""
    clauses, parameters = [], []
    for field, wanted in query.items():
        place = place_of(field, plan.names)
        assert place is not None, "the plan has the columns of all indexed fields"
        at, steps = place
        name = plan.names[at]
        if not isinstance(name, str):  # a key of several columns; the first step says which
            name, steps = name[steps[0]], steps[1:]
        column = Column(
            sql=plan.sought[name],
            affinity=plan.affinities.get(name),
            is_utf8=plan.is_utf8,
            is_json=at in plan.decode,
            is_path=bool(steps),
        )
        found = clause(column, wanted)
        if found is None:
            return None
        clauses.append(found[0])
        parameters += found[1]
    return " AND ".join(clauses) or "1", parameters


def _order(connection: Connection, origin: Origin) -> str:
    """By rowid where there is one, by primary key where that takes its place, else none."""
    rowid = rowid_of(connection, origin)
    if rowid is not None:
        return f"ORDER BY s.{rowid}"
    return "ORDER BY " + ", ".join(f"s.{quoted(name)}" for name in origin.primary) if origin.primary else ""


def _roots(schema: Schema, columns: Sequence[str]) -> list[str]:
    """The columns in which indexed fields, or paths, are; a field itself where there is none."""
    roots = [(field, path_of(field)[0]) for field in schema.index]
    return [root if field not in columns and root in columns else field for field, root in roots]


def _choose(schema: Schema, origin: Origin) -> tuple[str, ...]:
    """The fields of a record besides the key: the wanted columns without the embedding."""
    columns = origin.columns
    asked: dict[str, Sequence[str]] = {"columns": schema.columns or (), "json": schema.json}
    asked |= {"embedding": schema.embeddings, "index": _roots(schema, columns)}
    for argument, names in asked.items():
        missing = [name for name in names if name not in columns and name not in schema.key_fields]
        if missing:
            raise ValueError(f"{argument}: no column named {listed(missing)}; there are: {listed(columns)}")
    apart = {*schema.key_fields, *schema.embeddings}
    wanted = schema.columns if schema.columns is not None else columns
    fields = tuple(name for name in dict.fromkeys(wanted) if name not in apart)
    for argument in ("index", "json"):
        absent = [name for name in asked[argument] if name not in fields and name not in apart]
        if absent:
            known = [*schema.key_fields, *fields]
            raise ValueError(f"{argument}: {listed(absent)} not among columns={known}; add it there")
    for field, column in zip(schema.index, asked["index"], strict=True):
        if field != column and column in schema.embeddings:
            raise ValueError(f"index: {field!r} is a path into {column!r}, which is an embedding")
        if field != column and column not in schema.json:
            raise ValueError(f"index: {field!r} is a path into {column!r}, which is not among json=; add it there")
    for name in schema.key_fields:
        if name in schema.json:
            raise ValueError(f"json: {name!r} is the key, which cannot be JSON to decode")
    return fields
