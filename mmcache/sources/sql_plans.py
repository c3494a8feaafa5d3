"""How to read one collection of a database by SQLAlchemy: its statements, and what its rows become.

Tables and views are read in the order of their primary key, or else of the collection's key, as the databases keep no
other order. A query is run as it is, and has the order that its ORDER BY gives it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from operator import itemgetter
from typing import Any

import sqlalchemy

from ..query import Query, path_of, place_of
from ..schema import MAX_KEY_FIELDS, Schema
from ..values import PLAIN, Values
from .base import Invalid, Key, SourceRecord, refused
from .conditions import Clause
from .decoding import source_records
from .names import ended
from .rowkeys import is_key, key_of, keyed
from .sql_columns import ABSENT, ArrayDecoder, Convert, SQLColumn
from .sql_databases import Database
from .sql_links import RUN, Link
from .vectors import Decoders

__all__ = ["SQLPlan", "make_plan", "reduced"]

_VALUES = Values()
_DATED = frozenset({"date", "timestamp", "timestamptz", "opaque"})
"""Kinds whose text depends on settings of the session."""


@dataclass(frozen=True, slots=True)
class SQLPlan:
    """How to read one collection.

    schema: resolved.
    names: the fields of a record, as in a `SourceRecord`. The key's columns come first in a row, the embeddings last.
    width: columns of the key.
    decode: positions in `names` of columns of JSON text.
    all: the statement that gives every row. pick: the columns of its rows, where these are not the row.
    looking: SELECT ... FROM, to which a condition is added.
    body: the table or view, quoted; None for a query. order: ORDER BY clause, "" for a query.
    count: the statement that counts the records, or None where only reading them would.
    columns: by name. converts: at these positions of a row.
    has_moments: whether the session's settings make a difference.
    is_binary: see `Link.rows`.
    """

    database: Database
    schema: Schema
    names: tuple[Any, ...]
    width: int
    decode: tuple[int, ...]
    all: str
    pick: Callable[[Any], Any] | None
    looking: str
    body: str | None
    order: str
    count: str | None
    columns: Mapping[str, SQLColumn]
    converts: tuple[tuple[int, Convert], ...]
    arrays: frozenset[str]
    has_moments: bool
    is_binary: bool

    def decoders(self) -> Decoders:
        """Of the embeddings: those that have learned nothing yet."""
        found = Decoders(self.schema)
        found.of = tuple(
            ArrayDecoder(decode.dim) if field in self.arrays else decode  # type: ignore[misc]
            for field, decode in zip(found.fields, found.of, strict=True)
        )
        return found

    def rows(self, link: Link) -> Iterator[tuple[Any, ...]]:
        """All rows, as `looking` gives them. Streamed."""
        rows = link.rows(self.all, binary=self.is_binary)
        yield from rows if self.pick is None else map(self.pick, rows)

    def lookable(self, keys: Iterable[Key]) -> dict[Key, tuple[Any, ...]]:
        """Those that a row can have, each as it is compared."""
        found = {}
        columns = [self.columns[name] for name in self.schema.key_fields]
        for key in dict.fromkeys(keys):
            parts = (key,) if self.width == 1 else key
            if not isinstance(parts, tuple) or len(parts) != self.width:
                continue
            bound = tuple(self.database.bind(column.kind, part) for column, part in zip(columns, parts, strict=True))
            if not any(one is ABSENT for one in bound):
                found[key] = bound
        return found

    def by_key(self, bound: Sequence[tuple[Any, ...]], limit: int) -> Clause:
        columns = [self.columns[name] for name in self.schema.key_fields]
        return self.database.keys(columns, bound, limit)

    def condition(self, query: Query) -> Clause | None:
        """One that holds for every row that answers the query, and perhaps for others; None if none can."""
        clauses, parameters = [], []
        for field, wanted in query.items():
            place = place_of(field, self.names)
            assert place is not None, "the plan has the columns of all indexed fields"
            at, steps = place
            name = self.names[at]
            if not isinstance(name, str):  # a key of several columns; the first step says which
                name, steps = name[steps[0]], steps[1:]
            found = self.database.clause(self.columns[name], wanted, is_json=at in self.decode, is_path=bool(steps))
            if found is None:
                return None
            clauses.append(found[0])
            parameters += found[1]
        return " AND ".join(clauses) or "1 = 1", parameters

    def records(self, rows: Iterator[tuple[Any, ...]], decode: Decoders) -> Iterator[SourceRecord | Invalid]:
        """The rows with plain values, decoded and checked; a bad row as `refused`."""
        while run := list(islice(rows, RUN)):
            try:
                plain = self._plain(run)
            except ValueError:
                for row in run:  # which of them it is
                    yield from self._one(row, decode)
            else:
                yield from source_records(self, keyed(self, plain), decode)

    def _plain(self, run: list[tuple[Any, ...]]) -> Iterable[tuple[Any, ...]]:
        """Column by column, so that what is plain already costs one look in C. Raises ValueError."""
        columns: list[Sequence[Any]] = list(zip(*run, strict=True))
        for at, convert in self.converts:
            columns[at] = convert(columns[at])
        for at in range(len(columns) - len(self.schema.embeddings)):
            if not PLAIN.issuperset(map(type, columns[at])):
                columns[at] = [value if type(value) in PLAIN else _VALUES(value) for value in columns[at]]
        return zip(*columns, strict=True)

    def mappings(self, link: Link) -> Iterator[dict[str, Any]]:
        """All rows, with plain values, whether a record can be made of them or not; those without such values are left
        out. Streamed, embeddings as they are read."""
        fields = (*self.schema.key_fields, *self.names[1:], *self.schema.embeddings)
        for row in self.rows(link):
            with suppress(ValueError):
                (plain,) = self._plain([row])
                yield dict(zip(fields, plain, strict=True))

    def keys(self, rows: Iterable[tuple[Any, ...]]) -> frozenset[Key]:
        """Of rows that have the key's columns alone; without those that no record has."""
        found = set()
        for row in rows:
            values = list(row)
            try:
                for at, convert in self.converts:
                    if at < self.width:
                        (values[at],) = convert([values[at]])
                key = key_of(tuple(map(_VALUES, values)), self.width)
            except ValueError:
                continue
            if is_key(key):
                found.add(key)
        return frozenset(found)

    def _one(self, row: tuple[Any, ...], decode: Decoders) -> Iterator[SourceRecord | Invalid]:
        try:
            plain = list(self._plain([row]))
        except ValueError as error:
            yield refused(self.schema, key_of(row, self.width), self._reason(row, error), cause=error)
        else:
            yield from source_records(self, keyed(self, plain), decode)

    def _reason(self, row: tuple[Any, ...], error: ValueError) -> str:
        """Which column it is."""
        fields = (*self.schema.key_fields, *self.names[1:], *self.schema.embeddings)
        converts = dict(self.converts)
        for at, (field, value) in enumerate(zip(fields, row, strict=True)):
            try:
                values = converts[at]([value]) if at in converts else [value]
                if field not in self.schema.embeddings:
                    _VALUES(values[0])
            except ValueError as found:
                return f"column {field!r}: {found}"
        return str(error)


class _Origin:
    """body: what comes behind FROM. primary: the columns of its primary key. table: as the database has it."""

    def __init__(self, link: Link, schema: Schema) -> None:
        dialect = link.connection.dialect
        sign = dialect.identifier_preparer.initial_quote
        end = dialect.identifier_preparer.final_quote
        self.quote: Callable[[str], str] = lambda name: f"{sign}{name.replace(end, end + end)}{end}"
        self.primary: tuple[str, ...] = ()
        self.query: str | None = None
        self.table: str | None = None
        if schema.query is not None:
            self.query = ended(schema.query)
            self.body = f"(\n{self.query}\n)"
            return
        name = schema.table or schema.name
        inspector = sqlalchemy.inspect(link.connection)
        found = _found(inspector, name)
        if found is None:
            there = _names(inspector, None)
            raise ValueError(
                f"the database has no table {name!r}; it has: {', '.join(sorted(there)) or 'none'}. "
                "Name it with Schema(table=...), one of another schema as 'schema.table'"
            )
        space, table = found
        self.table = table if space is None else f"{space}.{table}"
        self.body = self.quote(table) if space is None else f"{self.quote(space)}.{self.quote(table)}"
        self.primary = tuple(inspector.get_pk_constraint(table, space).get("constrained_columns") or ())


def _found(inspector: Any, name: str) -> tuple[str | None, str] | None:
    """The schema and the name of a table or view, as it is spelled there: the case of letters matters only where two
    names differ in nothing else."""
    space, dot, table = name.rpartition(".")
    for where, wanted in ((None, name), (space, table)) if dot else ((None, name),):
        if inspector.has_table(wanted, where):
            there = _names(inspector, where)
            folded = {one.lower(): one for one in there}
            return where, wanted if wanted in there else folded.get(wanted.lower(), wanted)
        if inspector.has_table(wanted.lower(), where):
            return where, wanted.lower()
    return None


def _names(inspector: Any, where: str | None) -> list[str]:
    return [*inspector.get_table_names(where), *inspector.get_view_names(where)]


def make_plan(link: Link, database: Database, schema: Schema) -> SQLPlan:
    """The plan for one schema, checked against what the database has. Raises ValueError with the reason."""
    origin = _Origin(link, schema)
    found = database.columns(link, origin.body, origin.quote)
    there = [column.name for column in found]
    columns = dict(zip(there, found, strict=True))
    schema = _resolved(schema, origin, there)
    fields = _fields(schema, there)
    keys, embeddings = schema.key_fields, schema.embeddings
    selected = (*keys, *fields, *embeddings)
    names = (schema.key, *fields)
    texts = [columns[name].selected for name in (*keys, *fields)] + [columns[name].as_vector for name in embeddings]
    looking = f"SELECT {', '.join(texts)} FROM {origin.body} s"
    order = ""
    if origin.query is None:
        order = "ORDER BY " + ", ".join(f"s.{origin.quote(name)}" for name in origin.primary or keys)
    picked = None if origin.query is None or database.keeps_order else [there.index(name) for name in selected]
    own = len(keys) + len(fields)
    converts = [(i, columns[name].convert) for i, name in enumerate(selected[:own])]
    converts += [(own + i, columns[name].convert_vector) for i, name in enumerate(embeddings)]
    return SQLPlan(
        database=database,
        schema=schema,
        names=names,
        width=len(keys),
        decode=_decoded(schema, fields, columns),
        all=f"{looking} {order}".rstrip() if picked is None or origin.query is None else origin.query,
        pick=None if picked is None else _picker(picked),
        looking=looking,
        body=None if origin.query is not None else origin.body,
        order=order,
        count=f"SELECT count(*) FROM {origin.body} s" if origin.primary else None,
        columns=columns,
        converts=tuple((at, convert) for at, convert in converts if convert is not None),
        arrays=frozenset(name for name in embeddings if columns[name].convert_vector is not None),
        has_moments=any(
            columns[name].kind in _DATED and columns[name].sql != columns[name].selected for name in selected
        ),
        is_binary=database.is_binary and all(_is_exact(columns[name]) for name in (*keys, *fields)),
    )


def _decoded(schema: Schema, fields: Sequence[str], columns: Mapping[str, SQLColumn]) -> tuple[int, ...]:
    """Positions in a record, whose first value is the key, of the fields that are JSON text."""
    return tuple(i for i, name in enumerate(fields, 1) if name in schema.json or columns[name].kind == "json")


def _picker(at: Sequence[int]) -> Callable[[Any], Any]:
    """Gives the values at these positions of a row, as a tuple."""
    return itemgetter(*at) if len(at) > 1 else lambda row: (row[at[0]],)


def reduced(link: Link, database: Database, schema: Schema) -> Schema | None:
    """A schema without the indexes and columns that the database does not have; None without the table or the key."""
    try:
        plan = make_plan(link, database, replace(schema, index=(), json=(), columns=None))
    except ValueError:
        return None

    def kept(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in names if name in plan.columns or path_of(name)[0] in plan.columns)

    columns = None if schema.columns is None else kept(schema.columns)
    return replace(plan.schema, index=kept(schema.index), json=kept(schema.json), columns=columns)


def _is_exact(column: SQLColumn) -> bool:
    """Not of a real, which is 0.1 as text, and 0.10000000149011612 as it is."""
    return column.kind != "real" and (column.kind != "opaque" or column.selected != column.sql)


def _resolved(schema: Schema, origin: _Origin, columns: list[str]) -> Schema:
    """With its key, and names as the database spells them. Raises ValueError."""

    def spelled(given: Any) -> Any:
        if given is None or isinstance(given, str):
            return given and _spelled(given, columns)
        return tuple(map(spelled, given))

    key = schema.key
    if key is None and not (key := origin.primary):
        key = _spelled("id", columns)
        if key not in columns:
            raise ValueError(f"it has no primary key: name a key with key=; there are: {', '.join(columns)}")
    if len(key) > MAX_KEY_FIELDS and not isinstance(key, str):
        raise ValueError(f"key: the primary key has {len(key)} columns, and a key at most {MAX_KEY_FIELDS}")
    table = origin.table
    return replace(
        schema,
        key=spelled(key),
        index=spelled(schema.index),
        embedding=spelled(schema.embedding),
        table=None if table == schema.name else table,
        columns=spelled(schema.columns),
        json=spelled(schema.json),
    )


def _spelled(field: str, columns: Sequence[str]) -> str:
    """A field, or the column that a path begins in, as the database has it; as it is if it has none such."""
    if field in columns:
        return field
    folded = {column.lower(): column for column in columns}
    root = path_of(field)[0]
    name = root if root in columns else folded.get(root.lower(), root)
    return folded.get(field.lower()) or name + field.removeprefix(root)


def _fields(schema: Schema, columns: list[str]) -> tuple[str, ...]:
    """The fields of a record besides the key: the wanted columns without the embeddings. Raises ValueError."""
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise ValueError(f"query= gives more than one column named {', '.join(twice)}; name them apart with AS")
    roots = [field if field in columns else path_of(field)[0] for field in schema.index]
    asked = {"key": schema.key_fields, "columns": schema.columns or (), "json": schema.json}
    for argument, names in (asked | {"embedding": schema.embeddings, "index": roots}).items():
        if missing := [name for name in names if name not in columns]:
            raise ValueError(f"{argument}: no column named {', '.join(missing)}; there are: {', '.join(columns)}")
    apart = {*schema.key_fields, *schema.embeddings}
    fields = tuple(name for name in dict.fromkeys(schema.columns or columns) if name not in apart)
    for argument, names in (("index", roots), ("json", schema.json)):
        if absent := [name for name in names if name not in fields and name not in apart]:
            raise ValueError(f"{argument}: {', '.join(absent)} not among columns={list(fields)}; add it there")
    if both := apart & {*schema.json}:
        raise ValueError(f"json: {min(both)!r} is the key or an embedding, which is no JSON to decode")
    return fields
