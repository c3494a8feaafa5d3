"""The tables and views of a database that is reached by URL, as `survey` needs them. Nothing is written.

Each is looked at in a transaction of its own, so that one that cannot be read costs only itself. Needs the extra
`sqlalchemy`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing, suppress
from itertools import islice
from typing import Any, Final

import sqlalchemy

from ..errors import SourceError
from ..schema import MAX_KEY_FIELDS, Schema
from ..sources.sql_databases import Database, database_of
from ..sources.sql_links import Link, Links
from ..sources.sql_plans import make_plan
from .survey import SAMPLE, Survey, is_unique

__all__ = ["survey_url"]

_TIMEOUT: Final = 10.0
"""Seconds that connecting may take."""

_SECONDS: Final = 5
"""What a statement may take, where a server can be told so."""

_COUNTED: Final = 1_000_000
"""A table with more rows is not counted."""


def survey_url(url: str) -> tuple[list[Survey], list[str]]:
    """Of each table and view of the schema that the user sees first; and what was left out, with the reason. Raises
    SourceError."""
    links = Links(url, _TIMEOUT)
    database = database_of(links.url.get_backend_name())
    with closing(links):
        with links.take() as link:
            inspector = sqlalchemy.inspect(link.connection)
            views = {*inspector.get_view_names(), *_materialized(inspector)}
            parts = _partitions(link)
            names = sorted({*inspector.get_table_names(), *views} - {*parts})
            left_out = [f"{name}, a partition of a table that is there" for name in parts]
            if others := _other_schemas(link, inspector):
                left_out.append(f'the schemas {", ".join(others)}; name tables of theirs by table = "schema.name"')
        return [_survey(links, database, name, is_view=name in views) for name in names], left_out


def _survey(links: Links, database: Database, name: str, *, is_view: bool) -> Survey:
    try:
        with links.take() as link:
            database.begin(link)
            _hurry(link)
            inspector = sqlalchemy.inspect(link.connection)
            rows = _sample(link, database, name)
            indexed, unique = _indexes(inspector, name)
            key, reason = _key(inspector, name, rows, unique, is_view=is_view)
            size = _count(link, name, len(rows)) if database.has_limit else None
            return Survey(name, rows, size, key, reason, indexed, is_view=is_view)
    except (SourceError, ValueError) as error:
        return Survey(name, [], None, None, f"it cannot be read: {error}", is_view=is_view)


def _sample(link: Link, database: Database, name: str) -> list[dict[str, Any]]:
    """The first rows, in no order, as no key is known yet; with the values that records would have."""
    query = f"SELECT * FROM {_quoted(link, name)}"  # noqa: S608 (quoted)
    result = link.execute(f"{query} WHERE 1 = 0")
    first = next(iter(result.keys()))
    result.close()
    limit = f" LIMIT {SAMPLE}" if database.has_limit else ""
    plan = make_plan(link, database, Schema("sample", query=query + limit, key=first))
    if plan.has_moments:
        database.settle(link)
    decoded = {plan.names[at] for at in plan.decode}
    return [
        {field: _parsed(value) if field in decoded else value for field, value in row.items()}
        for row in islice(plan.mappings(link), SAMPLE)
    ]


def _parsed(value: Any) -> Any:
    with suppress(ValueError, RecursionError):
        return json.loads(value) if isinstance(value, str) else value
    return value


def _key(
    inspector: Any, name: str, rows: Sequence[dict[str, Any]], unique: Sequence[tuple[str, ...]], *, is_view: bool
) -> tuple[tuple[str, ...] | None, str]:
    """Its fields, if they are known, and why these, or why none."""
    primary = tuple(inspector.get_pk_constraint(name).get("constrained_columns") or ())
    if len(primary) > MAX_KEY_FIELDS:
        return None, f"its primary key has {len(primary)} columns, and a key at most {MAX_KEY_FIELDS}"
    if primary:
        if not _could_be(primary, rows):
            return None, f"its primary key, {', '.join(primary)}, is of a type that no key has"
        return primary, "its primary key"
    nullable = {column["name"] for column in inspector.get_columns(name) if column.get("nullable", True)}
    for columns in unique:
        if len(columns) <= MAX_KEY_FIELDS and nullable.isdisjoint(columns) and _could_be(columns, rows):
            return columns, "unique and not null"
    kind = "a view" if is_view else "it"
    could = [field for field in (rows[0] if rows else ()) if _could_be((field,), rows)]
    listed = f"unique and not null in its first {len(rows)} rows: {', '.join(could)}" if could else "name one"
    return None, f"{kind} has no primary key; {listed}"


def _could_be(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> bool:
    return is_unique([[row.get(column) for column in columns] for row in rows])


def _indexes(inspector: Any, name: str) -> tuple[dict[str, str], list[tuple[str, ...]]]:
    """The columns that an index begins with -> its name; and the columns of each that is unique. Those of the primary
    key apart."""
    indexed: dict[str, str] = {}
    unique: list[tuple[str, ...]] = []
    for one in inspector.get_indexes(name):
        columns = one.get("column_names") or []
        if not columns or columns[0] is None:  # an expression
            continue
        indexed.setdefault(columns[0], one["name"])
        is_whole = None not in columns and not _condition(one)
        if one.get("unique") and is_whole:
            unique.append(tuple(columns))
    with suppress(NotImplementedError):
        for one in inspector.get_unique_constraints(name):
            unique.append(tuple(one["column_names"]))
            indexed.setdefault(one["column_names"][0], "of a UNIQUE column")
    return indexed, unique


def _condition(index: dict[str, Any]) -> Any:
    """Of an index of some rows."""
    return index.get("dialect_options", {}).get("postgresql_where")


def _count(link: Link, name: str, seen: int) -> int | None:
    """seen: rows, if these are all. None for very many."""
    if seen < SAMPLE:
        return seen
    some = f"SELECT 1 AS one FROM {_quoted(link, name)} LIMIT {_COUNTED + 1}"  # noqa: S608 (quoted)
    try:
        count = int(link.execute(f"SELECT count(*) FROM ({some}) s").scalar_one())  # noqa: S608 (quoted)
    except sqlalchemy.exc.DBAPIError:
        return None
    return count if count <= _COUNTED else None


def _hurry(link: Link) -> None:
    """End, in this transaction, what takes too long."""
    if link.connection.dialect.name == "postgresql":
        link.execute(f"SET LOCAL statement_timeout = {1000 * _SECONDS}").close()


def _materialized(inspector: Any) -> list[str]:
    """Views that are stored, where a database has such."""
    with suppress(NotImplementedError):
        return list(inspector.get_materialized_view_names())
    return []


def _partitions(link: Link) -> list[str]:
    """Tables of PostgreSQL whose rows another table has, too."""
    if link.connection.dialect.name != "postgresql":
        return []
    sql = "SELECT relname FROM pg_class WHERE relispartition AND relkind IN ('r', 'p') AND pg_table_is_visible(oid)"
    return sorted(name for (name,) in link.execute(sql).fetchall())


def _other_schemas(link: Link, inspector: Any) -> list[str]:
    """Those with tables, of a database of PostgreSQL."""
    if link.connection.dialect.name != "postgresql":
        return []
    own = {inspector.default_schema_name, "information_schema", "_mmcache"}
    names = [name for name in inspector.get_schema_names() if name not in own and not name.startswith("pg_")]
    return [name for name in names if inspector.get_table_names(name)]


def _quoted(link: Link, name: str) -> str:
    quoted: str = link.connection.dialect.identifier_preparer.quote_identifier(name)
    return quoted
