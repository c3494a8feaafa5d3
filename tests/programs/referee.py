"""What is in the tables of a database, and what is asked of them, by sqlite3 alone: the truth of `walk`.

Nothing here is mmcache's: the key is made out by pragmas, rows come by one SELECT, and a question is SQL that compares
as the documents of `where` say, value and type, without affinities and collations.
"""

from __future__ import annotations

import math
import random
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Question", "Table", "Unreadable", "near", "questions", "tables_of", "terms_with_counts", "typed"]

_LOOKED_AT = 40
"""Columns of a view that are looked at for a key."""


class Unreadable(NamedTuple):
    """A table that sqlite3 itself cannot read; word: of the reason, to be found in every message about it."""

    database: Path
    name: str
    kind: str
    word: str


@dataclass
class Table:
    """A table or view that sqlite3 read.

    key: its columns, or what its rowid is called; of a view, the columns that are unique and not null, or none.
    unique: of a view, each single column that is so. columns: as SELECT * gives them. rows: (key, values) in order.
    bad: rows whose key holds NULL or REAL.
    """

    database: Path
    name: str
    kind: str
    key: tuple[str, ...]
    unique: tuple[str, ...]
    columns: tuple[str, ...]
    order: str
    rows: list[tuple[Any, tuple[Any, ...]]] = field(repr=False)
    bad: list[tuple[Any, ...]] = field(repr=False)

    @property
    def has_rowid(self) -> bool:
        """Whether the key is the rowid under its own name, and not a column."""
        return self.key not in ((), *((name,) for name in self.columns)) and len(self.key) == 1

    def fields(self, key: Any, values: tuple[Any, ...]) -> dict[str, Any]:
        """The record."""
        found = dict(zip(self.columns, values, strict=True))
        return {self.key[0]: key, **found} if self.has_rowid else found

    def termed(self) -> list[str]:
        """The columns that can be indexed: of a printable name, without a BLOB. At most four of all kinds: with the
        fewest and the most values, with NULLs, of several types."""
        found: dict[str, tuple[int, int, int]] = {}
        for i, name in enumerate(self.columns):
            values = [row[i] for _, row in self.rows]
            kinds = {type(value) for value in values}
            if bytes not in kinds and name and name.isprintable():
                distinct = len({typed(value) for value in values})
                found[name] = distinct, sum(value is None for value in values), len(kinds)
        several = [name for name in found if found[name][0] > 1] or list(found)
        by = [
            min(several, key=lambda name: found[name][0], default=None),
            max(several, key=lambda name: found[name][0], default=None),
            max(several, key=lambda name: found[name][1] * (found[name][1] < len(self.rows)), default=None),
            max(several, key=lambda name: found[name][2], default=None),
        ]
        return list(dict.fromkeys(name for name in by if name is not None))

    def connect(self) -> closing[sqlite3.Connection]:
        return closing(sqlite3.connect(f"{self.database.as_uri()}?mode=ro", uri=True))


def typed(value: Any) -> Any:
    """Equal where value and type are."""
    if isinstance(value, tuple):
        return tuple(map(typed, value))
    return type(value).__name__, value


def canonical(value: Any) -> Any:
    """The term that a value of SQLite is."""
    whole = isinstance(value, float) and math.isfinite(value) and value.is_integer()
    return int(value) if whole and -(2**63) <= value < 2**64 else value


# --- reading ----------------------------------------------------------------------------------------------------------


def tables_of(database: Path) -> Iterator[Table | Unreadable]:
    """Every table and view of the database, those that begin with sqlite_ too."""
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as db:
        found = db.execute("SELECT name, type FROM sqlite_master WHERE type IN ('table', 'view')").fetchall()
        for name, kind in found:
            try:
                yield _table(db, database, name, kind)
            except sqlite3.OperationalError as error:
                yield Unreadable(database, name, kind, _lacked(db, name, str(error)))


def _lacked(db: sqlite3.Connection, name: str, reason: str) -> str:
    """What sqlite3 has not got: the last word of its message, or a collation that it does not name there."""
    if "decode" in reason:
        return "UTF-8"
    if "no query solution" not in reason:
        return reason.rpartition(" ")[2]
    (collation,) = db.execute(
        "SELECT x.coll FROM pragma_index_list(?) AS i, pragma_index_xinfo(i.name) AS x"
        " WHERE x.coll NOT IN ('BINARY', 'NOCASE', 'RTRIM')",
        (name,),
    ).fetchone()
    return str(collation)


def _table(db: sqlite3.Connection, database: Path, name: str, kind: str) -> Table:
    selected = f"SELECT * FROM {quoted(name)}"
    columns = tuple(column[0] for column in db.execute(f"{selected} LIMIT 0").description)
    if kind == "view":
        values = db.execute(selected).fetchall()
        key, unique = _keys_of(columns, values)
        keys = [tuple(row[columns.index(part)] for part in key) for row in values]
        order = ""
    else:
        about = db.execute("SELECT pk, name FROM pragma_table_xinfo(?) WHERE pk ORDER BY pk", (name,)).fetchall()
        key, unique = tuple(column for _, column in about), ()
        rowid = _rowid(db, name, columns)
        key = key or (rowid or "",)
        order = f"ORDER BY {rowid}" if rowid else "ORDER BY " + ", ".join(map(quoted, key))
        parts = ", ".join(part if part == rowid else quoted(part) for part in key)
        both = db.execute(f"SELECT {parts}, * FROM {quoted(name)} {order}").fetchall()
        keys = [row[: len(key)] for row in both]
        values = [row[len(key) :] for row in both]
    rows = [(parts[0] if len(parts) == 1 else parts, row) for parts, row in zip(keys, values, strict=True)]
    good = [(key, row) for (key, row), parts in zip(rows, keys, strict=True) if _is_key(parts)]
    bad = [parts for parts in keys if not _is_key(parts)]
    return Table(database, name, kind, key, unique, columns, order, good, bad)


def _is_key(parts: tuple[Any, ...]) -> bool:
    return all(isinstance(part, (str, int, bytes)) for part in parts)


def _rowid(db: sqlite3.Connection, name: str, columns: Sequence[str]) -> str | None:
    """What the rowid can be called, quoted by nothing; None WITHOUT ROWID."""
    taken = {column.lower() for column in columns}
    for alias in ("rowid", "_rowid_", "oid"):
        if alias not in taken:
            try:
                db.execute(f"SELECT {alias} FROM {quoted(name)} LIMIT 0")
            except sqlite3.OperationalError as error:
                if "no such column" not in str(error):
                    raise
                return None
            return alias
    return None


def _keys_of(columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The fewest columns that identify a row of a view, at most three; and all single ones that do."""
    could = [i for i in range(min(len(columns), _LOOKED_AT)) if all(_is_key((row[i],)) for row in rows)]
    unique = tuple(columns[i] for i in could if len({typed(row[i]) for row in rows}) == len(rows))
    if unique:
        return ("id",) if "id" in unique else unique[:1], unique
    for size in (2, 3):
        for chosen in combinations(could, size):
            if len({tuple(typed(row[i]) for i in chosen) for row in rows}) == len(rows):
                return tuple(columns[i] for i in chosen), unique
    return (), unique


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


# --- keys that are not there ------------------------------------------------------------------------------------------


def near(key: Any) -> list[Any]:
    """Keys like this one in value or type, none equal to it."""
    if isinstance(key, tuple):
        found: list[Any] = [
            (*key[:i], other, *key[i + 1 :])
            for i, part in enumerate(key)
            for other in near(part)
            if type(other) is not tuple
        ]
        return [*found, key[::-1], key[0], key[-1]]
    if isinstance(key, int):
        others = (key + 1, key - 1, -key, key + 2**32, key ^ 2**62)
        return [other for other in others if -(2**63) <= other < 2**63] + [str(key), str(key).encode(), (key, key)]
    if isinstance(key, bytes):
        return [key + b"\0", key[:-1], key[::-1], key.decode("latin-1"), (key, key)]
    found = [key.upper(), key.lower(), key.swapcase(), key + " ", " " + key, key[:-1], key + "\0", key.encode()]
    return [*found, *([int(key)] if key.isdecimal() and len(key) < 19 else []), (key, key)]


# --- questions --------------------------------------------------------------------------------------------------------


class Question(NamedTuple):
    """One `where`.

    terms: field -> list of alternatives: a value, or (function, *arguments). order: (field, descending) or None.
    answer: the keys, in order.
    """

    terms: dict[str, list[Any]]
    order: tuple[str, bool] | None
    limit: int | None
    answer: list[Any]


def questions(table: Table, columns: Sequence[str], number: int) -> Iterator[Question]:
    """The same ones in each run, with SQLite's answers."""
    chance = random.Random(table.name)
    values = {name: [row[table.columns.index(name)] for _, row in table.rows] for name in columns}
    with table.connect() as db:
        for n in range(number):
            fields = chance.sample(list(columns), 2 if n % 5 == 4 and len(columns) > 1 else 1)
            terms = {name: _alternatives(chance, values[name]) for name in fields}
            is_ordered = n % 4 == 3 and table.kind == "table"  # what is equal stands in no order in a view
            order = (chance.choice(list(columns)), chance.random() < 0.5) if is_ordered else None
            limit = chance.randrange(1, 12) if order and chance.random() < 0.7 else None
            yield Question(terms, order, limit, _answer(db, table, terms, order, limit))


def terms_with_counts(table: Table, column: str) -> dict[Any, int]:
    """Term -> records that carry it."""
    i = table.columns.index(column)
    return dict(Counter(canonical(row[i]) for _, row in table.rows))


def _alternatives(chance: random.Random, values: list[Any]) -> list[Any]:
    one = chance.choice(values) if values else 1
    kind = chance.randrange(10)
    if kind <= 2:
        return [one]
    if kind == 3:
        return [*chance.sample(values, min(len(values), 3)), None]
    if kind == 4:
        return [chance.choice([-(10**6) - 1, "never there", 0.125, None, 7, "7"])]
    if kind == 5:
        return [("excluding", one)]
    if kind == 6 and isinstance(one, int) and abs(one) < 2**60:
        return [("range", one - 3, one + 5)]
    if isinstance(one, str) and kind == 7:
        return [("startswith", one[: chance.randrange(1, 4)])] if one and "\0" not in one else [one]
    return [_bounds(chance, one, values)]


def _bounds(chance: random.Random, one: Any, values: list[Any]) -> Any:
    """A range whose bounds are there, or nearly."""
    if one is None:
        return ("excluding", None)
    like = [value for value in values if isinstance(value, str) is isinstance(one, str) and value is not None] or [one]
    other = chance.choice(like)
    if isinstance(one, str):
        other += chance.choice(["", "a"])
    elif abs(other) < 2**53:
        other += chance.choice([0, 0.5, 1])
    name = chance.choice(["between", "above", "at_least", "below", "at_most"])
    return (name, *sorted([one, other])) if name == "between" else (name, one)


def _answer(
    db: sqlite3.Connection,
    table: Table,
    terms: dict[str, list[Any]],
    order: tuple[str, bool] | None,
    limit: int | None,
) -> list[Any]:
    clauses, given = [], []
    for name, alternatives in terms.items():
        found = [_clause(quoted(name), alternative) for alternative in alternatives]
        clauses.append("(" + " OR ".join(clause for clause, _ in found) + ")")
        given += [value for _, values in found for value in values]
    keys = ", ".join(part if table.has_rowid else quoted(part) for part in table.key)
    ordered = table.order
    if order is not None:
        by = f"+{quoted(order[0])} COLLATE BINARY {'DESC' if order[1] else ''}"
        ordered = f"ORDER BY {by}, {ordered.removeprefix('ORDER BY ')}" if ordered else f"ORDER BY {by}"
    sql = f"SELECT {keys} FROM {quoted(table.name)} WHERE {' AND '.join(clauses)} {ordered}"
    if db.execute("PRAGMA encoding").fetchone()[0] != "UTF-8":  # there, BINARY is not by code points
        db.create_collation("codepoints", lambda one, other: (one > other) - (one < other))
        sql = sql.replace("COLLATE BINARY", "COLLATE codepoints")
    rows = db.execute(sql if limit is None else f"{sql} LIMIT {limit}", given).fetchall()
    return [row[0] if len(row) == 1 else row for row in rows]


_OPERATORS = {"above": ">", "at_least": ">=", "below": "<", "at_most": "<="}
_IS_NUMBER = "typeof({0}) IN ('integer', 'real')"
_IS_TEXT = "typeof({0}) = 'text'"


def _clause(column: str, alternative: Any) -> tuple[str, list[Any]]:
    """A unary plus takes the column's affinity away, COLLATE its collation."""
    if not isinstance(alternative, tuple):
        if alternative is None:
            return f"{column} IS NULL", []
        return _compared(column, "=", alternative)
    name, *given = alternative
    if name == "excluding":
        clause, values = _clause(column, given[0])
        return f"NOT ({clause})", values
    if name == "startswith":
        return f"{_IS_TEXT.format(column)} AND substr({column}, 1, {len(given[0])}) = ? COLLATE BINARY", given
    if name == "range":
        whole = f"{_IS_NUMBER.format(column)} AND +{column} = CAST({column} AS INTEGER)"
        return f"({whole} AND +{column} >= ? AND +{column} < ?)", given
    if name == "between":
        (low, values), (high, more) = _compared(column, ">=", given[0]), _compared(column, "<=", given[1])
        return f"({low} AND {high})", values + more
    return _compared(column, _OPERATORS[name], given[0])


def _compared(column: str, operator: str, value: Any) -> tuple[str, list[Any]]:
    kind = _IS_TEXT if isinstance(value, str) else _IS_NUMBER
    return f"({kind.format(column)} AND +{column} {operator} ? COLLATE BINARY)", [value]
