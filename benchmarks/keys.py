"""Do keys of every type, ranges and orders keep pace: with text keys, and with SQLite?

Tables of equal records in SQLite, each with another kind of key and an index on `x`, and the file built from each.

keys      one get through a cache with its source. A hit is answered by the file; a miss goes on to the source; a dirty
          id was invalidated, and is answered by the source alone. They take turns with the same look-ups in the table
          with text keys.
ranges    a range of 1 % of the records, and the ten records that are first by `x`: ids alone, and whole records, beside
          the statement that asks SQLite for the same.

SQLite is a read-only connection as one opens it. "SQLite, tuned" is the same database opened as immutable and mapped,
which a database that changes does not allow; there are no goals for it. An int key is SQLite's rowid, so its index on
`x` holds the ids, too, and gives them without a look at any row: shown, without goals.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mmcache
from mmcache import Schema, between

from .common import Report, Settings, Turn, Work, interleave, parser, ratio_text, settings_of, time_text
from .data import digest_of, made

QUESTION = "Do keys of every type, ranges and orders keep pace with text keys, and with SQLite?"

SCHEMA = Schema("items", index=("x",))
NEVER = 1e6
"""Seconds between two looks at files and source: none falls into a measurement."""
IDS, DIRTY, SPREAD = 300, 300, 10
"""Ids of a turn; ids that are dirty; values of `x` for each record."""
FIRST = 10

OURS, PLAIN, TUNED = "mmcache", "SQLite", "SQLite, tuned"
TEXT = "text"
KEY_GOAL = 1.3
"""How many times as long as with text keys a look-up may take: with int keys."""
RANGE_GOAL, ORDER_GOAL = 0.5, 1.0
"""How many times as long as in SQLite."""
GOALS_FROM = 100_000
"""Records from which these hold: below, both take less than a millisecond, most of it to begin."""


GUARDED = "1 % by a range, ids", f"first {FIRST} by x, ids"
"""What `benchmarks.guard` watches, at `GOALS_FROM` records."""


# --- the tables -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """columns: of the key, as SQLite declares them. of: an ordinal's key; even ones are there. names: its fields."""

    columns: str
    of: Callable[[int], Any]
    names: str = "id"


KINDS = {
    TEXT: Kind("id TEXT PRIMARY KEY", lambda i: f"item-{i:08}"),
    "int": Kind("id INTEGER PRIMARY KEY", lambda i: i),
    "BLOB": Kind("id BLOB PRIMARY KEY", lambda i: b"item-%08d" % i),
    "text and int": Kind("a TEXT, b INTEGER, PRIMARY KEY (a, b)", lambda i: (f"item-{i // 10:07}", i % 10), "a, b"),
}


@dataclass(frozen=True)
class Table:
    """A database, and what was opened of it. n: records."""

    n: int
    kind: Kind
    path: str
    cache: mmcache.Cache
    plain: sqlite3.Connection
    tuned: sqlite3.Connection

    def keys(self, chosen: random.Random, *, there: bool) -> list[Any]:
        first = DIRTY if self.n > 2 * DIRTY else 0
        return [self.kind.of(2 * i + (not there)) for i in chosen.choices(range(first, self.n), k=IDS)]

    def dirty(self, chosen: random.Random) -> list[Any]:
        return [self.kind.of(2 * i) for i in chosen.choices(range(min(DIRTY, self.n)), k=IDS)]


def _write(kind: Kind, n: int, path: str) -> None:
    chosen = random.Random("keys")
    with contextlib.closing(sqlite3.connect(path)) as db:
        fields, _, composite = kind.columns.partition(", PRIMARY KEY")
        constraint = f", PRIMARY KEY{composite}" if composite else ""
        db.execute(f"CREATE TABLE items ({fields}, x INTEGER, name TEXT, score REAL{constraint})")
        marks = ", ".join("?" * (kind.names.count(",") + 4))
        db.executemany(
            f"INSERT INTO items VALUES ({marks})",
            ((*_parts(kind.of(2 * i)), chosen.randrange(SPREAD * n), f"name {i % 1000}", i / 7) for i in range(n)),
        )
        db.execute("CREATE INDEX by_x ON items (x)")
        db.execute("ANALYZE")
        db.commit()


def _parts(key: Any) -> tuple[Any, ...]:
    return key if isinstance(key, tuple) else (key,)


@contextlib.contextmanager
def opened(n: int, home: str, kinds: Sequence[str]) -> Iterator[dict[str, Table]]:
    """The tables, in files that are kept, and the caches, warm, with `DIRTY` ids invalidated."""
    digest = digest_of(__file__)
    with contextlib.ExitStack() as stack:
        tables = {}
        for name in kinds:
            kind, stem = KINDS[name], os.path.join(home, f"{n}-keys-{name.replace(' ', '-')}")
            path = made(f"{stem}-bank-", digest, ".db", partial(_write, kind, n))
            source = mmcache.SQLiteSource(path, SCHEMA)
            stack.callback(source.close)
            file = os.path.join(home, f"{n}-keys-{name.replace(' ', '-')}.mmc")
            mmcache.build(file, source)
            options: dict[str, Any] = {"executor": "external", "check_interval": NEVER, "ttl": NEVER}
            cache = stack.enter_context(mmcache.open(file, source, verify="full", **options))
            plain = stack.enter_context(contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)))
            tuned = stack.enter_context(contextlib.closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)))
            tuned.execute(f"PRAGMA mmap_size = {2**31 - 65536}")
            tables[name] = Table(n, kind, path, cache, plain, tuned)
        yield tables


# --- keys -------------------------------------------------------------------------------------------------------------


def key_works(table: Table) -> dict[str, Work]:
    """By operation: turns of a table's cache. The ids of `dirty` are invalidated here."""
    table.cache.invalidate([table.kind.of(2 * i) for i in range(min(DIRTY, table.n))])
    snapshot = mmcache.Snapshot.open(table.cache.path, verify="full")
    file = snapshot.default

    def turns(get: Callable[[Any], object], draw: Callable[[random.Random], list[Any]]) -> Work:
        def work(repetition: int) -> Turn:
            drawn = draw(random.Random(repetition))
            return partial(_each, get, drawn), len(drawn)

        return work

    there, absent = partial(table.keys, there=True), partial(table.keys, there=False)
    return {
        "hit": turns(table.cache.get, there),
        "miss in the file": turns(file.get, absent),
        "miss in file and source": turns(table.cache.get, absent),
        "dirty id": turns(table.cache.get, table.dirty),
    }


def _each(get: Callable[[Any], object], keys: Sequence[Any]) -> None:
    for key in keys:
        get(key)


def check_keys(table: Table) -> None:
    """What is there is found, and nothing else."""
    for draw in (partial(table.keys, there=True), table.dirty):
        for key in draw(random.Random(0)):
            record = table.cache.get(key)
            assert record is not None
            assert record.id == key
    assert not any(table.cache.get(key) for key in table.keys(random.Random(0), there=False))


# --- ranges and orders ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """ours, theirs: the answer between two bounds of `x`. count: of such questions in a turn. goal: of the ratio."""

    ours: Callable[[Any, int, int], Any]
    theirs: Callable[[sqlite3.Connection, int, int], Any]
    count: int
    goal: float


def questions(names: str = "id") -> dict[str, Asked]:
    """By operation. names: of the key's columns."""
    bounds, first = "WHERE x BETWEEN ? AND ?", f"LIMIT {FIRST}"

    def ids(sql: str) -> Callable[[sqlite3.Connection, int, int], Any]:
        statement = f"SELECT {names} FROM items {sql}"
        return lambda db, *between: [id_ for (id_,) in db.execute(statement, between[: sql.count("?")]).fetchall()]

    def records(sql: str) -> Callable[[sqlite3.Connection, int, int], Any]:
        statement = f"SELECT * FROM items {sql}"
        return lambda db, *between: db.execute(statement, between[: sql.count("?")]).fetchall()

    ranged, ordered = f"{bounds} ORDER BY x {first}", f"ORDER BY x {first}"
    return {
        "1 % by a range, ids": Asked(lambda t, a, b: t.where(x=between(a, b)).ids, ids(bounds), 1, RANGE_GOAL),
        "1 % by a range, records": Asked(
            lambda t, a, b: list(t.where(x=between(a, b))), records(bounds), 1, RANGE_GOAL
        ),
        f"first {FIRST} by x, ids": Asked(
            lambda t, *_: t.where().order_by("x").limit(FIRST).ids, ids(ordered), 50, ORDER_GOAL
        ),
        f"first {FIRST} by x, records": Asked(
            lambda t, *_: list(t.where().order_by("x").limit(FIRST)), records(ordered), 50, ORDER_GOAL
        ),
        f"first {FIRST} of a range, ids": Asked(
            lambda t, a, b: t.where(x=between(a, b)).order_by("x").limit(FIRST).ids, ids(ranged), 20, ORDER_GOAL
        ),
        f"first {FIRST} of a range, records": Asked(
            lambda t, a, b: list(t.where(x=between(a, b)).order_by("x").limit(FIRST)), records(ranged), 20, ORDER_GOAL
        ),
    }


def order_works(table: Table, asked: Asked) -> dict[str, Work]:
    """Of mmcache and both connections, the same questions."""
    with_file = mmcache.Snapshot.open(table.cache.path, verify="full").default
    width = max(1, SPREAD * table.n // 100)

    def turns(answer: Callable[[Any, int, int], Any], what: Any) -> Work:
        def work(repetition: int) -> Turn:
            chosen = random.Random(repetition)
            begins = [chosen.randrange(SPREAD * table.n - width) for _ in range(asked.count)]

            def action() -> None:
                for begin in begins:
                    answer(what, begin, begin + width - 1)

            return action, asked.count

        return work

    return {
        OURS: turns(asked.ours, with_file),
        PLAIN: turns(asked.theirs, table.plain),
        TUNED: turns(asked.theirs, table.tuned),
    }


def check_orders(table: Table, asked: Asked, name: str) -> None:
    """All answer alike."""
    file = mmcache.Snapshot.open(table.cache.path).default
    width = max(1, SPREAD * table.n // 100)
    for begin in (0, SPREAD * table.n // 3):
        ours, theirs = asked.ours(file, begin, begin + width), asked.theirs(table.plain, begin, begin + width)
        plain = [tuple(one.asdict().values()) if isinstance(one, mmcache.Record) else one for one in ours]
        assert sorted(plain) == sorted(theirs), (name, begin)


# --- the report -------------------------------------------------------------------------------------------------------


def keys(tables: Mapping[str, Table], settings: Settings, report: Report) -> None:
    n = tables[TEXT].n
    for table in tables.values():
        check_keys(table)
    by_kind = {name: key_works(table) for name, table in tables.items()}
    gc.freeze()
    rows = []
    for operation in by_kind[TEXT]:
        samples = interleave(
            {name: works[operation] for name, works in by_kind.items()}, settings.repeat(31), report.noise, primed=True
        )
        for i, name in enumerate(by_kind):
            seconds = samples.range(name)
            ratio = None if name == TEXT else samples.ratio(name, TEXT)
            report.result(n=n, operation=operation, contender=name, per="id", seconds=seconds, ratio=ratio)
            verdict = ""
            if name == "int" and ratio is not None:
                verdict = report.goal(f"{operation}: int keys / text keys", n, ratio.median, KEY_GOAL)
            told = ratio_text(ratio) if ratio else ""
            rows.append(["" if i else operation, name, time_text(seconds.median), told, verdict])
        rows.append([""] * 5)
    gc.unfreeze()
    report.table(f"a get by keys of several types, {n:,} records", ("", "", "median", "/ text", "goal"), rows[:-1])


def orders(table: Table, settings: Settings, report: Report) -> None:
    kind = next(name for name, kind in KINDS.items() if kind is table.kind)
    rows = []
    has_goals = table.kind is KINDS[TEXT] and table.n >= GOALS_FROM
    for operation, asked in questions().items():
        check_orders(table, asked, operation)
        works = order_works(table, asked)
        gc.freeze()
        samples = interleave(works, settings.repeat(31), report.noise, primed=True)
        gc.unfreeze()
        for i, name in enumerate(works):
            seconds = samples.range(name)
            ratio = None if name == OURS else samples.ratio(OURS, name)
            report.result(
                n=table.n, keys=kind, operation=operation, contender=name, per="query", seconds=seconds, ratio=ratio
            )
            verdict = ""
            if name == PLAIN and ratio is not None and has_goals:
                verdict = report.goal(f"{operation}: mmcache / SQLite", table.n, ratio.median, asked.goal)
            told = ratio_text(ratio) if ratio else ""
            rows.append(["" if i else operation, name, time_text(seconds.median), told, verdict])
        rows.append([""] * 5)
    title = f"ranges and orders, {table.n:,} records with {kind} keys"
    report.table(title, ("", "", "median", "mmcache / it", "goal"), rows[:-1])


def main() -> int:
    given = parser(QUESTION).parse_args()
    settings = settings_of(given)
    if not (given.quick or given.sizes):
        settings = Settings((1_000_000,), settings.repetitions, settings.data, settings.json, settings.check)
    report = Report("keys", QUESTION, settings)
    for n in settings.sizes:
        with opened(n, settings.data, list(KINDS)) as tables:
            orders(tables[TEXT], settings, report)
            orders(tables["int"], settings, report)
            keys(tables, settings, report)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
