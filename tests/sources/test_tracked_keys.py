"""Tracking of tables with keys of every type: what a writer changed is logged with its type, and never too little."""

from __future__ import annotations

import contextlib
import itertools
import random
import sqlite3

import pytest

from mmcache.schema import Schema
from mmcache.sources import SQLiteSource
from mmcache.sources.tracking import untrack

pytestmark = pytest.mark.usefixtures("no_leaks")

CREATE = {
    "integer": "CREATE TABLE t (id INTEGER PRIMARY KEY, u UNIQUE, v)",
    "autoincrement": "CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, u UNIQUE, v)",
    "text": "CREATE TABLE t (id TEXT PRIMARY KEY, u UNIQUE, v)",
    "no case": "CREATE TABLE t (id TEXT PRIMARY KEY COLLATE NOCASE, u UNIQUE, v)",
    "blob": "CREATE TABLE t (id BLOB PRIMARY KEY, u UNIQUE, v)",
    "any type": "CREATE TABLE t (id PRIMARY KEY, u UNIQUE, v) WITHOUT ROWID",
    "rowid": "CREATE TABLE t (u UNIQUE, v)",
    "two": "CREATE TABLE t (a, v, b, u UNIQUE, PRIMARY KEY (b, a))",
    "two without rowid": "CREATE TABLE t (a, v, b, u UNIQUE, PRIMARY KEY (b, a)) WITHOUT ROWID",
    "two, one without case": "CREATE TABLE t (a TEXT COLLATE NOCASE, b INTEGER, u UNIQUE, v, PRIMARY KEY (a, b))",
    "two, one of them the rowid": "CREATE TABLE t (id INTEGER PRIMARY KEY, a, u UNIQUE, v)",
    "eight": "CREATE TABLE t (a, b, c, d, e, f, g, h, u UNIQUE, v, PRIMARY KEY (h, g, f, e, d, c, b, a))",
}
KEYS = {"two, one of them the rowid": ("a", "id")}

VALUES = [1, 2, 3, -1, "1", "2", "a", "A", b"1", b"a", 1.0, 2.0, 1.5, None]
"""-1 is what SQLite gives for a rowid before it knows it, 1.0 and 1 are one key to an index."""


@pytest.fixture
def database(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "t.db", isolation_level=None)) as db:
        db.execute("PRAGMA synchronous = OFF")
        yield db


def rows_of(source):
    """Key -> record, of the rows that have one."""
    return {record.values[0]: record for record in source.find("t", {})}


def changes_since(source, since):
    changes = source.changes(since)
    assert changes is not None
    return changes


def typed(keys):
    return {(type(key), key) for key in keys}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CREATE)
def test_no_change_of_a_record_is_missed(tmp_path, database, name, seed):
    """Random statements of every kind, and what they changed, from a look at all rows before and after each."""
    database.execute(CREATE[name])
    columns = [row[0] for row in database.execute("SELECT * FROM t").description]
    draw = random.Random(f"{name} {seed}")
    with contextlib.closing(SQLiteSource(tmp_path / "t.db", Schema("t", key=KEYS.get(name)))) as source:
        source.track()
        since, before = source.fingerprint(), rows_of(source)
        for _ in range(150):
            with contextlib.suppress(sqlite3.IntegrityError):
                database.execute(*statement(draw, columns, name))
            now = rows_of(source)
            changes = changes_since(source, since)
            changed = {key for key in before.keys() | now.keys() if before.get(key) != now.get(key)}
            assert typed(changed) <= typed(changes.keys["t"])
            since, before = changes.fingerprint, now
        assert before


def statement(draw, columns, name):
    named = draw.choice([columns, columns, [column for column in columns if column != "id"], ["u", "v"]])
    if name == "rowid" and draw.random() < 0.5:
        named = ["rowid", *named]
    values = [draw.choice(VALUES[:9] if name == "eight" else VALUES) for _ in named]
    kind = draw.choice(["INSERT", "INSERT OR REPLACE", "INSERT OR IGNORE", "UPDATE", "UPDATE OR REPLACE", "DELETE"])
    if kind.startswith("INSERT"):
        return f"{kind} INTO t ({', '.join(named)}) VALUES ({', '.join('?' * len(named))})", values
    column = draw.choice(named)
    if kind == "DELETE":
        return f"DELETE FROM t WHERE {column} = ?", values[:1]
    other = draw.choice(named)
    return f"{kind} t SET {column} = ? WHERE {other} = ?", [draw.choice(VALUES), draw.choice(VALUES)]


@pytest.mark.parametrize("name", ["integer", "rowid", "two", "any type", "eight"])
def test_a_change_names_the_record_and_no_other(tmp_path, database, name):
    database.execute(CREATE[name])
    with contextlib.closing(SQLiteSource(tmp_path / "t.db", Schema("t"))) as source:
        tables = source.track().tables
        assert [table.key for table in tables] == [source.schemas[0].key]
        width = len(source.schemas[0].key_fields)
        columns = ", ".join(source.schemas[0].key_fields)
        for value in [7, -1, 2**63 - 1] if name in ("integer", "rowid") else [7, "7", b"7", "", b"", "\0'x"]:
            since = source.fingerprint()
            marks = ", ".join("?" * width)
            database.execute(f"INSERT INTO t ({columns}) VALUES ({marks})", [value] * width)
            changes = changes_since(source, since)
            assert typed(changes.keys["t"]) == typed([value if width == 1 else (value,) * width])
            database.execute("UPDATE t SET v = 1 WHERE v IS NULL")
            assert typed(changes_since(source, changes.fingerprint).keys["t"]) == typed(changes.keys["t"])
            (key,) = changes.keys["t"]
            assert source.in_order("t", [key]) == [key]
    removed = untrack(tmp_path / "t.db")
    assert {"_mmcache_changes", "_mmcache_tracking"} < set(removed)
    assert not database.execute("SELECT name FROM sqlite_master WHERE name LIKE '%mmcache%'").fetchall()


def test_keys_of_one_column_and_of_several_are_told_apart(tmp_path, database):
    """Though a column is called like two others together."""
    database.execute('CREATE TABLE t (a, b, "a.b", "a, b", "(a, b)", v)')
    names: list[str | tuple[str, ...]] = [("a", "b"), "a.b", "a, b", "(a, b)", ("a", "v"), "a", "rowid"]
    schemas = [Schema(f"s{i}", table="t", key=key) for i, key in enumerate(names)]
    with contextlib.closing(SQLiteSource(tmp_path / "t.db", *schemas)) as source:
        triggers = list(itertools.chain(*(table.triggers for table in source.track().tables)))
        assert len(triggers) == len(set(triggers))
        since = source.fingerprint()
        database.execute("INSERT INTO t VALUES (1, 2, 3, 4, 5, 6)")
        assert changes_since(source, since).keys == {
            "s0": {(1, 2)}, "s1": {3}, "s2": {4}, "s3": {5}, "s4": {(1, 6)}, "s5": {1}, "s6": {1},
        }  # fmt: skip


def test_tracking_of_an_older_version_is_made_anew(tmp_path, database):
    database.execute(CREATE["text"])
    with contextlib.closing(SQLiteSource(tmp_path / "t.db", Schema("t"))) as source:
        source.track()
        database.execute('DROP TABLE "_mmcache_changes"')
        database.execute(
            'CREATE TABLE "_mmcache_changes" (seq INTEGER PRIMARY KEY AUTOINCREMENT, mark INTEGER NOT NULL, '
            "tbl_name TEXT NOT NULL, key_name TEXT NOT NULL, key)"
        )
        assert source.changes(source.fingerprint()) is None
        assert source.track().changed
        since = source.fingerprint()
        database.execute("INSERT INTO t VALUES ('a', 1, 1)")
        assert changes_since(source, since).keys == {"t": {"a"}}
