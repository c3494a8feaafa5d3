"""SQL from a schema: which columns, from where, in which order, and under what condition.

Pure but for looking at what the database has. Two rules make the rest of the package simple:

- Columns are always qualified (`s."name"`), because SQLite takes an unknown double-quoted name for a string.
- A condition gives a *superset*: it takes indexes, affinities, collations and JSON1 as they are, and the caller checks
  each row. It must only never lose one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..schema import Query, Schema, Term
from .connections import Connection

__all__ = ["Plan", "by_key", "condition", "keys_in_order", "make_plan", "reduced", "storable"]

MAX_TERMS = 500
"""More terms than this in one field are not put into SQL; the caller's check alone finds them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to read one collection; the pieces of its statements.

    names: the fields of a row; the key first, the embedding not among them, though it is last in the row.
    key: the key column, as it is written in a condition.
    select: "SELECT ..." up to FROM.
    lookup: FROM clause where the order does not matter, so that SQLite may use any index of a table below a query.
    stable: FROM clause whose order is that of `all` under any condition.
    order: ORDER BY clause, or "" where `stable` has its own order.
    decode: positions in `names` of columns of JSON text.
    count: statement that counts the records, or None where only reading them would.
    """

    names: tuple[str, ...]
    key: str
    select: str
    lookup: str
    stable: str
    order: str
    decode: tuple[int, ...]
    count: str | None

    @property
    def all(self) -> str:
        """The statement that gives every row."""
        # A condition keeps SQLite from merging `stable` with the outer query, where it might read an index that covers
        # the columns asked for, and not the table. So `all` has one, too.
        return f"{self.select} {self.stable} WHERE 1 {self.order}"


def make_plan(connection: Connection, schema: Schema) -> Plan:
    """The plan for one schema, checked against what the database has. Raises ValueError with the reason."""
    body, kind, columns = _origin(connection, schema)
    order, count = "", None
    if kind == "table":
        table, _ = _find_table(connection, schema.table or schema.name)
        order, count = _order(connection, table), f"SELECT count(*) FROM {body}"
    names = _choose(schema, columns)
    selected = names if schema.embedding is None else (*names, schema.embedding)
    lookup = f"FROM {body} AS s"
    return Plan(
        names=names,
        key=f"s.{_quoted(schema.key)}",
        select="SELECT " + ", ".join(f"s.{_quoted(name)}" for name in selected),
        lookup=lookup,
        # LIMIT keeps SQLite from merging the inner query with the outer, and so its order as it is.
        stable=lookup if order else f"FROM (SELECT * FROM {body} LIMIT -1) AS s",
        order=order,
        decode=tuple(i for i, name in enumerate(names) if name in schema.json),
        count=count,
    )


def reduced(connection: Connection, schema: Schema) -> Schema | None:
    """The schema without the indexes and columns that the database does not have; None where it lacks more."""
    try:
        _, _, columns = _origin(connection, schema)
    except ValueError:
        return None
    if schema.key not in columns or (schema.embedding is not None and schema.embedding not in columns):
        return None

    def kept(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in names if name in columns)

    wanted = None if schema.columns is None else kept(schema.columns)
    return replace(schema, index=kept(schema.index), json=kept(schema.json), columns=wanted)


def _origin(connection: Connection, schema: Schema) -> tuple[str, str, list[str]]:
    """What stands behind FROM, whether that is a table, a view or a query, and its columns. Raises ValueError."""
    if schema.query is not None:
        body = f"(\n{schema.query}\n)"
        return body, "query", _query_columns(connection, schema.query, body)
    table, kind = _find_table(connection, schema.table or schema.name)
    body = _quoted(table)
    return body, kind, _columns(connection, f"SELECT * FROM {body} LIMIT 0")


def by_key(plan: Plan, ids: Sequence[str], limit: int) -> tuple[str, list[str]]:
    """The statement for some ids, at most `limit`, and its parameters."""
    clause, parameters = _key_clause(plan, ids, limit)
    return f"{plan.select} {plan.lookup} WHERE {clause}", parameters


def keys_in_order(plan: Plan, ids: Sequence[str], limit: int) -> tuple[str, list[str]]:
    """The statement that gives these keys as the first values of its rows, among others, in the order of all records.

    limit: parameters that a statement takes; for more ids, all rows are asked for.

    The order of a query or view is that of its very statement: with a condition or fewer columns, SQLite might go
    another way through the tables below it.
    """
    if not plan.order:
        return plan.all, []
    select = f"SELECT {plan.key} {plan.stable}"
    if len(ids) > limit:
        return f"{select} {plan.order}", []
    clause, parameters = _key_clause(plan, ids, limit)
    return f"{select} WHERE {clause} {plan.order}", parameters


def _key_clause(plan: Plan, ids: Sequence[str], limit: int) -> tuple[str, list[str]]:
    """A condition on the key. The number of ids is filled up to a power of two, so that few statements are prepared."""
    size = min(limit, 1 << (len(ids) - 1).bit_length())
    return f"{plan.key} IN ({', '.join('?' * size)})", [*ids, *[ids[-1]] * (size - len(ids))]


def condition(schema: Schema, query: Query) -> tuple[str, list[Any]] | None:
    """A condition that holds for every row that answers the query, and perhaps for others; None if none can."""
    clauses, parameters = [], []
    for field, terms in query.items():
        column = f"s.{_quoted(field)}"
        found = _json_clause(column, terms) if field in schema.json else _clause(column, terms)
        if found is None:
            return None
        clauses.append(found[0])
        parameters += found[1]
    return " AND ".join(clauses) or "1", parameters


def _clause(column: str, terms: Iterable[Term]) -> tuple[str, list[Any]] | None:
    values = [
        term for term in terms if (term < 2**63 if isinstance(term, int) else term is not None and storable(term))
    ]
    if len(values) > MAX_TERMS:
        return "1", []
    clauses = [f"{column} IN ({_marks(values)})"] * bool(values) + [f"{column} IS NULL"] * (None in terms)
    return (f"({' OR '.join(clauses)})", values) if clauses else None


def _json_clause(column: str, terms: Sequence[Term]) -> tuple[str, list[Any]] | None:
    if not terms:
        return None
    values = [term for term in terms if isinstance(term, int) or (term is not None and storable(term))]
    # JSON1 cuts strings at NUL and reads integers beyond 64 bits as floats: leave such terms to the caller's check.
    beyond = any("\0" in value if isinstance(value, str) else value >= 2**63 for value in values)
    if beyond or len(values) > MAX_TERMS:
        return "1", []
    null = None in terms
    items = [f"e.value IN ({_marks(values)})"] * bool(values) + ["e.type = 'null'"] * null
    if not items:
        return None
    found = f"EXISTS (SELECT 1 FROM json_each({column}) AS e WHERE {' OR '.join(items)})"
    # What is not JSON goes to the caller, who says whose it is.
    return f"CASE WHEN {column} IS NULL THEN {int(null)} WHEN json_valid({column}) THEN {found} ELSE 1 END", values


def storable(text: str) -> bool:
    """Whether SQLite can hold the text: one with lone surrogates equals nothing there."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _columns(connection: Connection, sql: str) -> list[str]:
    return [column[0] for column in connection.execute(sql).description]


def _query_columns(connection: Connection, query: str, body: str) -> list[str]:
    try:
        columns = _columns(connection, f"SELECT * FROM {body} LIMIT 0")
    except (sqlite3.OperationalError, sqlite3.ProgrammingError) as error:
        if getattr(error, "sqlite_errorname", "SQLITE_ERROR") != "SQLITE_ERROR":
            raise
        raise ValueError(f"query= must be one SELECT without parameters; SQLite says: {error}") from error
    # A sub-select renames the second "id" to "id:1"; only the query itself tells that from a column of that name.
    if any(":" in name for name in columns):
        given = _columns(connection, query)
        twice = sorted({name for name in given if given.count(name) > 1})
        if twice:
            raise ValueError(f"query= gives more than one column named {_listed(twice)}; name them apart with AS")
    return columns


def _find_table(connection: Connection, name: str) -> tuple[str, str]:
    tables = connection.execute("SELECT name, type FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY 1")
    found = dict(tables.fetchall())
    for table, kind in found.items():
        if table.lower() == name.lower():
            return table, kind
    known = _listed(table for table in found if not table.startswith("sqlite_"))
    raise ValueError(f"the database has no table {name!r}; it has: {known}. Name it with Schema(table=...)")


def _order(connection: Connection, table: str) -> str:
    """By rowid where there is one, by primary key where that takes its place, else none."""
    rows = connection.execute("SELECT name, pk FROM pragma_table_xinfo(?)", (table,)).fetchall()
    taken = {name.lower() for name, _ in rows}
    for alias in ("rowid", "_rowid_", "oid"):
        if alias in taken:
            continue
        try:
            connection.execute(f"SELECT s.{alias} FROM {_quoted(table)} AS s LIMIT 0")
        except sqlite3.OperationalError as error:
            if "no such column" not in str(error):
                raise
            break
        return f"ORDER BY s.{alias}"
    key = sorted((pk, name) for name, pk in rows if pk)
    return "ORDER BY " + ", ".join(f"s.{_quoted(name)}" for _, name in key) if key else ""


def _choose(schema: Schema, columns: list[str]) -> tuple[str, ...]:
    """The fields of a record: the key, then the wanted columns without the embedding."""
    wanted = list(schema.columns if schema.columns is not None else columns)
    asked = {"key": [schema.key], "columns": wanted, "index": schema.index, "json": schema.json}
    if schema.embedding is not None:
        asked["embedding"] = [schema.embedding]
    for argument, names in asked.items():
        missing = [name for name in names if name not in columns]
        if missing:
            raise ValueError(f"{argument}: no column named {_listed(missing)}; there are: {_listed(columns)}")
    fields = tuple(name for name in dict.fromkeys([schema.key, *wanted]) if name != schema.embedding)
    for argument in ("index", "json"):
        absent = [name for name in asked[argument] if name not in fields and name != schema.embedding]
        if absent:
            raise ValueError(f"{argument}: {_listed(absent)} not among columns={list(fields)}; add it there")
    if schema.key in schema.json:
        raise ValueError(f"json: {schema.key!r} is the key, which is a str and cannot be JSON to decode")
    return fields
