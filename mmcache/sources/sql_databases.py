"""What differs between databases: how a consistent read begins, what their columns hold, how keys and terms are
compared, and what tells that something was written.

A condition gives a *superset*, as in `conditions`: collations and types are taken as they are, and the caller checks
each row. It must only never lose one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from ..query import Alternative, Excluding, Interval, Prefix, Term
from .conditions import MAX_TERMS, Clause, Column as SQLiteColumn, after, clause as sqlite_clause
from .sql_columns import (
    ABSENT,
    Kind,
    SQLColumn,
    bindable,
    bounds,
    moments,
    moments_of_arrays,
    vectors_of_arrays,
    vectors_of_pgvector,
    wholes,
)
from .sql_links import MARK, Link

__all__ = ["Database", "database_of"]

ANY: Clause = ("1 = 1", [])


class Database:
    """Any other database: read in one transaction of its default isolation, keys compared as it compares."""

    keeps_order = False
    """Whether a query keeps its order below another."""

    has_limit = False
    is_binary = False
    tells = False
    """Whether it has a `state`."""

    can_track = False

    def begin(self, link: Link) -> None:
        """Begin a transaction that sees one state of the database."""

    def settle(self, link: Link) -> None:
        """Have moments written as `moments` reads them, until the transaction ends."""

    def columns(self, link: Link, body: str, quote: Any) -> list[SQLColumn]:
        """Those of a table, view or query. Reads no row."""
        result = link.execute(f"SELECT * FROM {body} s WHERE 1 = 0")
        found = self._columns(link, list(_cursor(result).description), quote)
        result.close()
        return found

    def _columns(self, link: Link, description: list[Any], quote: Any) -> list[SQLColumn]:  # noqa: ARG002
        return [_plain(column[0], "any", f"s.{quote(column[0])}") for column in description]

    def keys(self, columns: Sequence[SQLColumn], keys: Sequence[Any], limit: int) -> Clause:
        """The condition that the key, of so many columns, is one of these; `keys` as of `bindable`. limit: more are not
        asked for at once. Filled up to a power of two, so that few statements are prepared."""
        size = min(limit, 1 << (len(keys) - 1).bit_length())
        filled = [*keys, *[keys[-1]] * (size - len(keys))]
        if len(columns) == 1:
            return f"{columns[0].sql} IN ({', '.join(MARK * size)})", [key for (key,) in filled]
        row = " AND ".join(f"{column.sql} = {MARK}" for column in columns)
        return f"({' OR '.join([f'({row})'] * size)})", [part for key in filled for part in key]

    def clause(
        self, column: SQLColumn, wanted: Sequence[Alternative], *, is_json: bool, is_path: bool
    ) -> Clause | None:
        """The condition that a column answers what a query asks of it; None if no row can."""
        terms: list[Term] = [one for one in wanted if one is None or isinstance(one, (str, int, float))]
        if is_json or is_path or len(wanted) > MAX_TERMS or any(isinstance(one, Excluding) for one in wanted):
            return ANY
        if column.kind in ("any", "opaque", "json"):
            return ANY
        clauses = [self._terms(column, terms)]
        for one in wanted:
            if isinstance(one, range) and one:
                one = Interval(min(one[0], one[-1]), max(one[0], one[-1]))
            if isinstance(one, Prefix):
                one = Interval(one.text, after(one.text))
            if isinstance(one, Interval):
                clauses.append(self._span(column, one.low, one.high))
        found = [one for one in clauses if one is not None]
        if not found:
            return None
        return f"({' OR '.join(sql for sql, _ in found)})", [value for _, values in found for value in values]

    def _terms(self, column: SQLColumn, terms: Sequence[Term]) -> Clause | None:
        values = [value for term in terms if term is not None and (value := self.bind(column.kind, term)) is not ABSENT]
        null = [f"{column.sql} IS NULL"] * (None in terms)
        if None in terms and column.kind in ("float", "real"):
            null += self._nan(column)
        listed = [f"{self._compared(column)} IN ({', '.join([self._mark(column)] * len(values))})"] * bool(values)
        return (" OR ".join([*listed, *null]), values) if values or null else None

    def _span(self, column: SQLColumn, low: Any, high: Any) -> Clause | None:
        found = bounds(column.kind, low, high)
        if found is None:
            return None
        ends = [(">=", found[0]), ("<=", found[1])]
        parts = [(sign, self._bound(column, bound)) for sign, bound in ends if bound is not None]
        left, right = self._ordered(column)
        if not parts or not left:
            return ANY
        return f"({' AND '.join(f'{left} {sign} {right}' for sign, _ in parts)})", [bound for _, bound in parts]

    def _bound(self, column: SQLColumn, bound: Any) -> Any:  # noqa: ARG002
        return bound

    def bind(self, kind: Kind, value: Any) -> Any:
        """See `bindable`."""
        return bindable(kind, value)

    def _nan(self, column: SQLColumn) -> list[str]:  # noqa: ARG002
        return []

    def _compared(self, column: SQLColumn) -> str:
        return column.sql

    def _mark(self, column: SQLColumn) -> str:
        return f"CAST({MARK} AS {column.cast})" if column.cast else MARK

    def _ordered(self, column: SQLColumn) -> tuple[str, str]:
        """A column, and a parameter, as they are compared where their order matters; "" where the database's own is
        another one."""
        is_text = column.kind in ("text", "padded", "word", "strings", "uuid", "decimal", "array", "bool", "bytes")
        return ("" if is_text else column.sql), self._mark(column)

    def state(self, link: Link) -> bytes | None:  # noqa: ARG002
        """What differs after every transaction that wrote; None where the database does not tell."""
        return None


class PostgreSQL(Database):
    keeps_order = True
    has_limit = True
    is_binary = True
    tells = True
    can_track = True

    encoding = "utf-8"
    """By which the driver sends text, as Python calls it: that of the database, unless a user chose another."""

    def begin(self, link: Link) -> None:
        link.connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    def settle(self, link: Link) -> None:
        settings = {"TimeZone": "UTC", "DateStyle": "ISO", "IntervalStyle": "iso_8601"}
        calls = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in settings.items())
        link.execute(f"SELECT {calls}").close()

    def _columns(self, link: Link, description: list[Any], quote: Any) -> list[SQLColumn]:
        self.encoding = link.encoding or self.encoding
        unknown = [column[1] for column in description if column[1] not in _OIDS]
        names: dict[int, tuple[str, str, str]] = {}
        if unknown:
            oids = ", ".join(map(str, map(int, unknown)))
            types = link.rows(
                f"SELECT oid, typname, typcategory, CAST(typsend AS text) FROM pg_type WHERE oid IN ({oids})"
            )
            names = {int(row[0]): row[1:] for row in types}
        return [self._column(column, names, quote) for column in description]

    def _column(self, column: Any, names: dict[int, tuple[str, str, str]], quote: Any) -> SQLColumn:
        name, oid, scale = column[0], column[1], column[5]
        sql = f"s.{quote(name)}"
        kind, cast = _OIDS.get(oid, ("opaque", ""))
        if oid == _NUMERIC and column[4] is not None and scale == 0:
            return _plain(name, "whole", sql, cast=cast)._replace(convert=wholes)
        if oid in _MOMENTS:
            found = _plain(name, kind, sql, selected=f"CAST({sql} AS text)", cast=cast)
            return found if oid == _INTERVAL else found._replace(convert=moments)
        if kind == "json":
            return _plain(name, kind, sql, selected=f"CAST({sql} AS text)")
        if oid in _FLOATS:
            found = _plain(name, kind, sql, cast=cast)
            return found._replace(as_vector=f"array_send({sql})", convert_vector=vectors_of_arrays)
        if oid in _OIDS:
            return _plain(name, kind, sql, cast=cast)
        if oid == _INET:  # whose text has a mask, unlike what it is written as
            return _plain(name, "opaque", sql, selected=f"NULLIF(concat({sql}), '')")
        word, category, send = names.get(oid, ("", "", ""))
        if category == "A":
            found = _plain(name, "opaque", sql, selected=f"CAST({sql} AS text[])")
            return found._replace(convert=moments_of_arrays) if word in _ARRAYS_OF_MOMENTS else found
        found = _plain(name, "word", sql, selected=f"CAST({sql} AS text)", cast="text")
        if word == "vector" and send.endswith("vector_send"):  # pgvector
            return found._replace(as_vector=f"{send}({sql})", convert_vector=vectors_of_pgvector)
        if word == "halfvec":
            as_vector = f"array_send(CAST({sql} AS real[]))"
            return found._replace(as_vector=as_vector, convert_vector=vectors_of_arrays)
        return found

    def keys(self, columns: Sequence[SQLColumn], keys: Sequence[Any], limit: int) -> Clause:  # noqa: ARG002
        if any(not column.cast for column in columns):
            return ANY
        parts = [list(values) for values in zip(*keys, strict=True)]
        lists = [f"CAST({MARK} AS {column.cast}[])" for column in columns]
        if len(columns) == 1:
            return f"{self._compared(columns[0])} = ANY({lists[0]})", parts
        row = ", ".join(map(self._compared, columns))
        return f"({row}) IN (SELECT * FROM unnest({', '.join(lists)}))", parts

    def _terms(self, column: SQLColumn, terms: Sequence[Term]) -> Clause | None:
        if column.kind == "array":
            values = [value for term in terms if (value := self._element(column, term)) is not ABSENT]
            if None in terms:
                return ANY
            return (f"{column.sql} && CAST({MARK} AS {column.cast})", [values]) if values else None
        return super()._terms(column, terms)

    def bind(self, kind: Kind, value: Any) -> Any:
        """See `bindable`. Text that the database has no letters for is ABSENT."""
        found = bindable(kind, value)
        return ABSENT if isinstance(found, str) and not self._has(found) else found

    def _has(self, text: str) -> bool:
        try:
            text.encode(self.encoding)
        except UnicodeError:
            return False
        return True

    def _span(self, column: SQLColumn, low: Any, high: Any) -> Clause | None:
        low, high = (None if isinstance(bound, str) and not self._has(bound) else bound for bound in (low, high))
        return ANY if low is None and high is None else super()._span(column, low, high)

    def _element(self, column: SQLColumn, term: Term) -> Any:
        if column.cast in ("text[]", "varchar[]"):
            return self.bind("text", term)
        found = bindable("int", term)
        half = _SMALL[column.cast]
        return found if found is not ABSENT and -half <= found < half else ABSENT

    def _nan(self, column: SQLColumn) -> list[str]:
        return [f"{column.sql} = 'NaN'"]

    def _compared(self, column: SQLColumn) -> str:
        return f"CAST({column.sql} AS text)" if column.kind == "word" else column.sql

    def _ordered(self, column: SQLColumn) -> tuple[str, str]:
        # The order of UTF-8 bytes, if the database has that encoding; in most others it is that, too, or none.
        if column.kind in ("text", "word"):
            return f"convert_to({self._compared(column)}, 'UTF8')", f"convert_to({MARK}, 'UTF8')"
        return super()._ordered(column)

    def state(self, link: Link) -> bytes | None:
        """Which transactions are over, and so seen: that differs exactly when another one that wrote anywhere in the
        server has ended. A position of the log (WAL) would not do: a commit is in it before it is seen.

        Of a standby: how far it has replayed, which moves after what was replayed is seen.
        """
        dialect: Any = link.connection.dialect
        snapshot = "pg_current_snapshot" if dialect.server_version_info >= (13,) else "txid_current_snapshot"
        row = link.execute(
            f"SELECT CASE WHEN pg_is_in_recovery() THEN CAST(pg_last_wal_replay_lsn() AS text)"
            f" ELSE CAST({snapshot}() AS text) END, CAST(pg_postmaster_start_time() AS text), current_database()"
        ).fetchone()
        return blake2b(repr(tuple(row or ())).encode(), digest_size=32).digest()


_NUMERIC, _INTERVAL, _INET = 1700, 1186, 869
_MOMENTS = {1082, 1083, 1114, 1184, 1266, _INTERVAL}
_FLOATS = {1021, 1022}
_OIDS: dict[int, tuple[Kind, str]] = {
    16: ("bool", "boolean"),
    17: ("bytes", "bytea"),
    20: ("int", "bigint"),
    21: ("int", "bigint"),
    23: ("int", "bigint"),
    25: ("text", "text"),
    1042: ("padded", "bpchar"),
    1043: ("text", "text"),
    700: ("real", "real"),
    701: ("float", "double precision"),
    _NUMERIC: ("decimal", "numeric"),
    2950: ("uuid", "uuid"),
    1082: ("date", "date"),
    1114: ("timestamp", "timestamp"),
    1184: ("timestamptz", "timestamptz"),
    1083: ("opaque", ""),
    1266: ("opaque", ""),
    _INTERVAL: ("opaque", ""),
    114: ("json", ""),
    3802: ("json", ""),
    1005: ("array", "smallint[]"),
    1007: ("array", "integer[]"),
    1016: ("array", "bigint[]"),
    1009: ("array", "text[]"),
    1015: ("array", "varchar[]"),
    **dict.fromkeys((1000, 1001, 1014, 1021, 1022, 1231, 2951), ("opaque", "")),
}
"""Types whose values drivers give as plain ones, or as those of the rule of `values`. Of others the text is read."""

_ARRAYS_OF_MOMENTS = frozenset({"_date", "_time", "_timetz", "_timestamp", "_timestamptz"})

_SMALL = {"smallint[]": 2**15, "integer[]": 2**31, "bigint[]": 2**63}


class MySQL(Database):
    """MySQL and MariaDB."""

    has_limit = True

    def begin(self, link: Link) -> None:
        link.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").close()
        link.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT").close()

    def columns(self, link: Link, body: str, quote: Any) -> list[SQLColumn]:
        """See `Database.columns`. Which columns of text have a narrow character set, the server says by refusing to
        compare them with a letter that most have not. It is asked once for all, and only then one by one."""
        found = super().columns(link, body, quote)
        texts = [at for at, column in enumerate(found) if column.kind == "strings"]
        if texts and self._is_narrow(link, body, [found[at] for at in texts]):
            for at in texts:
                if self._is_narrow(link, body, [found[at]]):
                    found[at] = found[at]._replace(kind="narrow")
        return found

    def _is_narrow(self, link: Link, body: str, columns: Sequence[SQLColumn]) -> bool:
        """Whether one of them is. Reads no row."""
        compared = " OR ".join(f"{column.sql} = {MARK}" for column in columns)
        return not link.takes(f"SELECT 1 FROM {body} s WHERE 1 = 0 AND ({compared})", [_WIDE] * len(columns))

    def _columns(self, link: Link, description: list[Any], quote: Any) -> list[SQLColumn]:  # noqa: ARG002
        found = []
        for column in description:
            kind = _MYSQL_TYPES.get(column[1], "opaque")
            is_whole = kind == "decimal" and column[5] == 0
            made = _plain(column[0], "whole" if is_whole else kind, f"s.{quote(column[0])}")
            found.append(made._replace(convert=wholes) if is_whole else made)
        return found

    def keys(self, columns: Sequence[SQLColumn], keys: Sequence[Any], limit: int) -> Clause:
        if any(column.kind == "opaque" for column in columns):
            return ANY
        parts = list(zip(*keys, strict=True))
        if any(_has_no_day(column, part) for column, part in zip(columns, parts, strict=True)):
            return ANY
        widened = [_widened(column, part) for column, part in zip(columns, parts, strict=True)]
        return super().keys(widened, keys, limit)

    def bind(self, kind: Kind, value: Any) -> Any:
        if kind in ("int", "whole") and type(value) is int:  # may be unsigned, and longer
            return value
        if kind in ("date", "timestamp") and _is_no_day(value):
            return value
        found = bindable(kind, value)
        return ABSENT if kind in ("date", "timestamp") and "+" in str(found) else found

    def _terms(self, column: SQLColumn, terms: Sequence[Term]) -> Clause | None:
        return ANY if _has_no_day(column, terms) else super()._terms(_widened(column, terms), terms)

    def _ordered(self, column: SQLColumn) -> tuple[str, str]:
        if column.kind in ("strings", "narrow"):
            return f"CAST({_wide(column)} AS BINARY)", f"CAST({MARK} AS BINARY)"
        return super()._ordered(column)

    def _bound(self, column: SQLColumn, bound: Any) -> Any:
        return bound.partition("+")[0] if column.kind in ("date", "timestamp") else bound


_WIDE = "\U0001f600"
"""A letter of four bytes of UTF-8."""


def _wide(column: SQLColumn) -> str:
    return f"CONVERT({column.sql} USING utf8mb4)"


def _widened(column: SQLColumn, values: Sequence[Any]) -> SQLColumn:
    """As it is compared with these: an index serves where its character set has them for sure, those of ASCII."""
    is_wide = column.kind == "narrow" and any(isinstance(one, str) and not one.isascii() for one in values)
    return column._replace(sql=_wide(column)) if is_wide else column


_NO_DAY = re.compile(r"\d{4}-\d\d-\d\d(?: \d\d:\d\d:\d\d(?:\.\d{1,6})?)?", re.ASCII)


def _is_no_day(value: Any) -> bool:
    """Whether it is a date of MySQL's alone, such as 0000-00-00 or the 31st of February, or a time of one."""
    return isinstance(value, str) and bool(_NO_DAY.fullmatch(value)) and bindable("timestamp", value) is ABSENT


def _has_no_day(column: SQLColumn, values: Sequence[Any]) -> bool:
    """Whether one of these would be refused by a server that is strict, though rows from before may hold it."""
    return column.kind in ("date", "timestamp") and any(map(_is_no_day, values))


_MYSQL_TYPES: dict[int, Kind] = {
    **dict.fromkeys((1, 2, 3, 8, 9, 13), "int"),
    **dict.fromkeys((0, 246), "decimal"),
    **dict.fromkeys((249, 250, 251, 252, 253, 254), "strings"),
    5: "float",
    10: "date",
    7: "timestamp",
    12: "timestamp",
    245: "json",
}
"""Of the protocol. FLOAT (4) is not among them: a value that is read is no longer equal to itself."""


class SQLite(Database):
    has_limit = True

    def begin(self, link: Link) -> None:
        link.execute("BEGIN").close()

    def bind(self, kind: Kind, value: Any) -> Any:
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            return ABSENT
        return bindable(kind, value)

    def clause(
        self, column: SQLColumn, wanted: Sequence[Alternative], *, is_json: bool, is_path: bool
    ) -> Clause | None:
        return sqlite_clause(SQLiteColumn(column.sql, None, is_utf8=False, is_json=is_json, is_path=is_path), wanted)


def _plain(name: str, kind: Kind, sql: str, *, selected: str = "", cast: str = "") -> SQLColumn:
    return SQLColumn(name, kind, sql, selected or sql, selected or sql, cast)


def _cursor(result: Any) -> Any:
    return result.cursor


_DATABASES: dict[str, type[Database]] = {
    "postgresql": PostgreSQL,
    "mysql": MySQL,
    "mariadb": MySQL,
    "sqlite": SQLite,
}


def database_of(dialect: str) -> Database:
    return _DATABASES.get(dialect, Database)()
