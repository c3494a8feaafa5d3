"""The tables of a real database: each is built with its name alone, read from both tiers, compared with `referee`."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import mmcache
from mmcache import Cache, MmcacheError, Schema, Snapshot, SourceRecord, SQLiteSource
from tests.programs.referee import Question, Table, Unreadable, near, questions, tables_of, terms_with_counts, typed
from tests.support.profile import NIGHTLY

__all__ = ["Outcome", "shown", "walk"]

_QUESTIONS, _FEWEST = 50, 5
"""Questions to a table, and to one that is so large that each takes long."""

_LARGE = 2_000
"""Rows of a table with fewer questions, but in a nightly run."""

_KEYS = 120
"""Keys of a table whose neighbours are asked for."""

_LISTED = 4
"""Differences that are listed of one table."""


class Outcome(NamedTuple):
    """What became of one table.

    rows: -1 where sqlite3 cannot read it. reason: why it was not built; "" if it was. wrong: what differs from SQLite,
    or a reason that does not say enough.
    """

    database: str
    table: str
    kind: str
    rows: int
    key: str
    reason: str
    wrong: list[str]


def walk(database: Path, label: str, place: Path, *, is_deep: bool = True) -> Iterator[Outcome]:
    """Every table of one database; files are built in `place`. Not is_deep: only built."""
    for number, table in enumerate(tables_of(database)):
        wrong: list[str] = []
        reason = ""
        try:
            wrong += itertools.islice(_differences(table, place / f"{number}.mmc", is_deep=is_deep), _LISTED)
        except MmcacheError as error:
            reason = str(error)
            wrong += _unsaid(table, reason)
        except Exception as error:  # noqa: BLE001 (the walk goes on; the test fails at its end)
            wrong.append(f"{type(error).__name__}: {error}")
        rows, key = (len(table.rows) + len(table.bad), ", ".join(table.key)) if isinstance(table, Table) else (-1, "")
        yield Outcome(label, table.name, table.kind, rows, key, reason, wrong)


def shown(outcomes: Iterable[Outcome]) -> list[str]:
    """Lines of a table for people."""
    lines = [("database", "table", "rows", "key", "built, or why not")]
    for one in outcomes:
        end = f"WRONG: {'; '.join(one.wrong)}" if one.wrong else one.reason or "built"
        table = one.table if one.kind == "table" else f"{one.table} ({one.kind})"
        lines.append((one.database, table, str(one.rows), one.key, " ".join(end.split())))
    widths = [min(44, max(len(line[i]) for line in lines)) for i in range(4)]
    return ["  ".join([*(line[i].ljust(widths[i]) for i in range(4)), line[4][:200]]) for line in lines]


# --- one table --------------------------------------------------------------------------------------------------------


def _differences(table: Table | Unreadable, path: Path, *, is_deep: bool) -> Iterator[str]:
    """Raises MmcacheError where the table is not built."""
    if isinstance(table, Table) and table.kind == "view":
        if is_deep:
            yield from _unsaid_of_view(table, path)
        if not table.key:
            mmcache.build(path, SQLiteSource(table.database, _schema(table)))  # raises
    schema = _schema(table)
    with closing(SQLiteSource(table.database, schema)) as source:
        report = mmcache.build(path, source)
        if isinstance(table, Unreadable):
            return
        if table.bad:
            yield f"was built, though rows have keys like {table.bad[0]!r}"
        if report.records[schema.name] != len(table.rows):
            yield f"{report.records[schema.name]} records of {len(table.rows)} rows"
        if is_deep:
            with Snapshot.open(path) as snapshot:
                yield from _rows(table, snapshot, source)
            with mmcache.open(path, source) as cache:
                yield from _misses(table, cache, source)
    columns = table.termed() if is_deep else []
    if columns:
        yield from _where(table, path.with_suffix(".indexed.mmc"), columns)


def _schema(table: Table | Unreadable, *, index: Iterable[str] = ()) -> Schema:
    """Of a table its name alone; of a view the key too. A name that is not printable stands in table=."""
    more: dict[str, Any] = {} if table.name.isprintable() else {"table": table.name}
    if isinstance(table, Table) and table.kind == "view" and table.key:
        more["key"] = table.key if len(table.key) > 1 else table.key[0]
    return Schema(table.name if table.name.isprintable() else "collection", index=tuple(index), **more)


def _unsaid(table: Table | Unreadable, reason: str) -> Iterator[str]:
    """What is missing in the reason why a table was not built."""
    if isinstance(table, Unreadable):
        if table.word not in reason:
            yield f"sqlite3 lacks {table.word}, which the reason does not name: {reason}"
    elif table.bad:
        if not any(word in reason for word in ("NULL", "REAL", "real number", "float")):
            yield f"a key is {table.bad[0]!r}, which the reason does not say: {reason}"
    elif table.kind == "table" or table.key:
        yield f"was not built: {reason}"


def _unsaid_of_view(table: Table, path: Path) -> Iterator[str]:
    """Without key=, a view is refused with the columns that could be one."""
    if "id" in map(str.lower, table.columns):
        return
    try:
        mmcache.build(path, SQLiteSource(table.database, Schema(table.name)))
    except MmcacheError as error:
        reason = str(error)
        if table.rows and "takes too long" not in reason:
            missing = [name for name in ("unique and not null", *table.unique) if name not in reason]
            if missing:
                yield f"{missing} not in the message of a view without key=: {reason}"
    else:
        yield "a view was built without a key"


# --- rows and keys ----------------------------------------------------------------------------------------------------


def _rows(table: Table, snapshot: Snapshot, source: SQLiteSource) -> Iterator[str]:
    """Every row by its key from the file and from the source, and all of them in order."""
    (name,) = snapshot.collections
    keys = [key for key, _ in table.rows]
    if (table.kind == "table" and _typed(snapshot) != _typed(keys)) or Counter(_typed(snapshot)) != Counter(
        _typed(keys)
    ):
        yield f"keys differ: {_first(_typed(snapshot), _typed(keys))}"
    if len(snapshot) != len(keys):
        yield f"len is {len(snapshot)} of {len(keys)}"
    given = source.fetch(name, keys)
    for (key, values), record in zip(table.rows, given, strict=True):
        expected = _sorted(table.fields(key, values))
        if _sorted(snapshot[key].asdict()) != expected:
            yield f"the file has {snapshot[key]!r} for {expected}"
        if record is None or _sorted(_fields(record)) != expected:
            yield f"the source gives {record!r} for {expected}"
    if table.kind == "table":
        for (key, values), one in zip(table.rows, snapshot.values(), strict=True):
            if _sorted(one.asdict()) != _sorted(table.fields(key, values)):
                yield f"iterating gives {one!r} in the place of {key!r}"


def _misses(table: Table, cache: Cache, source: SQLiteSource) -> Iterator[str]:
    """Keys that are nearly one; some of them are another row's."""
    truth = {typed(key): table.fields(key, values) for key, values in table.rows}
    keys = [key for key, _ in table.rows[:: max(1, len(table.rows) // _KEYS)]]
    if not keys:
        keys = [1, "a"] if len(table.key) == 1 else [(1,) * len(table.key), ("a",) * len(table.key)]
    asked = [other for key in keys for other in near(key)]
    given = source.fetch(cache.schema.name, asked)
    for key, record in zip(asked, given, strict=True):
        expected, found = truth.get(typed(key)), cache.get(key)
        is_equal = found is None if expected is None else found and _sorted(found.asdict()) == _sorted(expected)
        if not is_equal or (key in cache) is (expected is None):
            yield f"{key!r} gives {found!r}, in SQLite {expected}"
        if (record is None) is not (expected is None):
            yield f"the source gives {record!r} for {key!r}, in SQLite {expected}"


# --- where ------------------------------------------------------------------------------------------------------------


def _where(table: Table, path: Path, columns: list[str]) -> Iterator[str]:
    """Questions to the file, and the same to the source."""
    many = 0 if NIGHTLY else len(table.rows)
    asked = list(questions(table, columns, max(_FEWEST, _QUESTIONS * _LARGE // max(many, _LARGE))))
    with closing(SQLiteSource(table.database, _schema(table, index=columns))) as source:
        mmcache.build(path, source)
        with Snapshot.open(path) as snapshot:
            (collection,) = snapshot.collections.values()
            for column in columns:
                counts = {typed(term): n for term, n in collection.terms(column).items()}
                if counts != {typed(term): n for term, n in terms_with_counts(table, column).items()}:
                    yield f"terms({column!r}) are {counts}"
            yield from _answers("the file", collection, table, asked)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MMCACHE_DISABLE", "1")
            with mmcache.open(path, source) as cache:
                yield from _answers("the source", cache, table, asked)
                if sum(cache.stats().fallbacks.values()) == 0:
                    yield "the source was not asked"


def _answers(tier: str, asked: Any, table: Table, all_questions: list[Question]) -> Iterator[str]:
    for question in all_questions:
        terms = {name: _asked(alternatives) for name, alternatives in question.terms.items()}
        selection = asked.where(terms)
        if question.order is not None:
            selection = selection.order_by(question.order[0], descending=question.order[1])
        if question.limit is not None:
            selection = selection.limit(question.limit)
        found, expected = _typed(record.id for record in selection), _typed(question.answer)
        is_equal = found == expected if table.kind == "table" else Counter(found) == Counter(expected)
        if not is_equal or len(selection) != len(expected):
            yield f"{tier} answers {terms}, {question.order}, {question.limit}: {_first(found, expected)}"


def _asked(alternatives: list[Any]) -> Any:
    """As `where` takes it."""
    found = [_alternative(*one) if isinstance(one, tuple) else one for one in alternatives]
    return found if len(found) > 1 else found[0]


def _alternative(name: str, *arguments: Any) -> Any:
    function: Callable[..., Any] = range if name == "range" else getattr(mmcache, name)
    return function(*arguments)


# --- comparing --------------------------------------------------------------------------------------------------------


def _fields(record: SourceRecord) -> dict[str, Any]:
    """A composite key's fields have a tuple for their name."""
    names: Any
    values: Any
    names, values = tuple(record.names), tuple(record.values)
    if isinstance(names[0], tuple):
        names, values = (*names[0], *names[1:]), (*values[0], *values[1:])
    return dict(zip(names, values, strict=True))


def _sorted(fields: dict[str, Any]) -> list[Any]:
    return sorted((name, typed(value)) for name, value in fields.items())


def _typed(keys: Iterable[Any]) -> list[Any]:
    return [typed(key) for key in keys]


def _first(found: list[Any], expected: list[Any]) -> str:
    """Where they differ first."""
    for i, (one, other) in enumerate(itertools.zip_longest(found, expected)):
        if one != other:
            return f"{len(found)} for {len(expected)}; at {i}: {one!r} for {other!r}"
    return f"{len(found)} in another order"
