"""Tracking: what another process writes is logged, whatever it does, and nothing else is.

The foreign writer is a Python of its own with nothing but sqlite3.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import shutil
import sqlite3
import subprocess
import sys
import time

import pytest

from examples.demo.bank import write_bank
from mmcache.errors import SourceError
from mmcache.presets.patterns import PatternsSource
from mmcache.schema import Schema
from mmcache.sources import Changes, IterableSource, Source, SQLiteSource, TrackedSource, fingerprint
from mmcache.sources.tracking import TRIM_EVERY, track, untrack
from tests.support import inside
from tests.support.processes import ask_child
from tests.support.waits import until

pytestmark = pytest.mark.usefixtures("no_leaks")

ITEMS = Schema("items", key="id")
CREATE = (
    "CREATE TABLE items (id TEXT PRIMARY KEY, email TEXT UNIQUE, n INTEGER);"
    "CREATE TABLE other (id TEXT);"
    "INSERT INTO items VALUES ('a', 'a@', 1), ('b', 'b@', 2), ('c', 'c@', 3);"
)

FOREIGN = """
import json, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
for line in sys.stdin:
    try:
        for sql, parameters in json.loads(line):
            db.execute(sql, parameters).fetchall()
        print("ok", flush=True)
    except sqlite3.Error as error:
        print(error, flush=True)
"""


class Foreign:
    """Another process that writes to a database."""

    def __init__(self, path):
        self._process = subprocess.Popen(
            [sys.executable, "-c", FOREIGN, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout

    def __call__(self, *statements, expect="ok"):
        """Each a statement, or a pair of it and its parameters."""
        pairs = [(one, ()) if isinstance(one, str) else one for one in statements]
        self._to.write(json.dumps(pairs) + "\n")
        self._to.flush()
        assert expect in self._from.readline()

    def close(self):
        self._to.close()
        self._process.wait(30)
        self._from.close()


@pytest.fixture
def foreign():
    with contextlib.ExitStack() as stack:
        yield lambda path: stack.enter_context(contextlib.closing(Foreign(path)))


@pytest.fixture(params=["delete", "wal"])
def journal(request):
    return request.param


def make(path, script=CREATE, journal="wal"):
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(f"PRAGMA journal_mode = {journal}; PRAGMA synchronous = OFF; {script}")
    return path


@pytest.fixture
def sources():
    """SQLiteSource, closed at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda path, *schemas: stack.enter_context(contextlib.closing(SQLiteSource(path, *schemas or (ITEMS,))))


@pytest.fixture
def path(tmp_path, journal):
    return make(tmp_path / "items.db", journal=journal)


@pytest.fixture
def source(path, sources):
    made = sources(path)
    assert made.track().changed
    return made


@pytest.fixture
def write(path, source, foreign):
    return foreign(path)


def keys(source, since, collection="items"):
    """The changed keys, sorted, once it is sure that they are of the fingerprint's own moment."""
    changes = source.changes(since)
    assert changes.fingerprint == source.fingerprint()
    return sorted(changes.keys[collection])


def changes_of(source, since):
    """The changed keys of every collection."""
    return source.changes(since).keys


def exact(source):
    """Whether the source's fingerprint is that of a tracked database."""
    return source.changes(source.fingerprint()) is not None


# ---- what is logged --------------------------------------------------------------------------------------------------


def test_the_source_says_what_it_can(source):
    assert isinstance(source, Source)
    assert isinstance(source, TrackedSource)
    assert not isinstance(IterableSource([], ITEMS), TrackedSource)
    since = source.fingerprint()
    assert len(since) == 32
    assert source.changes(since) == Changes(since, {"items": frozenset()})


@pytest.mark.parametrize(
    ("statements", "changed"),
    [
        (["INSERT INTO items VALUES ('d', 'd@', 4)"], "d"),
        (["UPDATE items SET n = 9 WHERE id = 'b'"], "b"),
        (["DELETE FROM items WHERE id = 'a'"], "a"),
        (["DELETE FROM items"], "abc"),
        (["UPDATE items SET id = 'z' WHERE id = 'b'"], "bz"),
        (["UPDATE items SET id = 'B' WHERE id = 'b'"], "Bb"),
        (["UPDATE items SET id = id || id"], ["a", "aa", "b", "bb", "c", "cc"]),
        (["INSERT OR REPLACE INTO items VALUES ('a', 'a2@', 5)"], "a"),
        (["INSERT OR REPLACE INTO items VALUES ('d', 'a@', 5)"], "ad"),
        (["INSERT OR REPLACE INTO items VALUES ('b', 'a@', 5)"], "ab"),
        (["REPLACE INTO items (rowid, id) VALUES (3, 'd')"], "cd"),
        (["REPLACE INTO items SELECT 'x' || id, email, n FROM items WHERE n < 3"], ["a", "b", "xa", "xb"]),
        (["UPDATE OR REPLACE items SET email = 'c@' WHERE id = 'a'"], "ac"),
        (["UPDATE OR REPLACE items SET id = 'c' WHERE id = 'a'"], "ac"),
        (["UPDATE OR REPLACE items SET rowid = 3 WHERE id = 'a'"], "ac"),
        (["UPDATE OR REPLACE items SET oid = 2 WHERE id = 'a'"], "ab"),
        (["INSERT INTO items VALUES ('a', 'z@', 7) ON CONFLICT (id) DO UPDATE SET n = 7"], "a"),
        (["INSERT INTO items VALUES ('z', 'b@', 7) ON CONFLICT (email) DO UPDATE SET n = 7"], "b"),
        (["INSERT OR IGNORE INTO items VALUES ('a', 'z@', 7)"], ""),
        (["BEGIN", "UPDATE items SET n = 0", "ROLLBACK"], ""),
        (["BEGIN", "UPDATE items SET n = 0", "SAVEPOINT s", "DELETE FROM items", "ROLLBACK TO s", "COMMIT"], "abc"),
        (["PRAGMA recursive_triggers = ON", "REPLACE INTO items VALUES ('d', 'a@', 5)"], "ad"),
        (["INSERT INTO other VALUES ('x')"], ""),
        ([["INSERT INTO items (id) VALUES (?)", ["o'\"\u00fc\n\0x"]]], ["o'\"\u00fc\n\0x"]),
        (["INSERT INTO items (id) VALUES (NULL), ('t')"], "t"),
    ],
)
def test_the_keys_that_another_process_changed_and_no_others(source, write, statements, changed):
    since = source.fingerprint()
    write(*statements)
    assert keys(source, since) == list(changed)
    assert (source.fingerprint() == since) is (not changed)


@pytest.mark.parametrize(
    ("table", "values", "changed"),
    [
        ("items (id INTEGER PRIMARY KEY)", "(7), (-9223372036854775808), ('12')", {7, -(2**63), 12}),
        ("items (id)", "(1), ('1'), (x'31'), (1.5), (NULL)", {1, "1", b"1"}),
        ("items (id BLOB PRIMARY KEY) WITHOUT ROWID", "(x''), (x'00ff')", {b"", b"\0\xff"}),
        ("items (id REAL)", "(1), (2.5)", {1}),  # as REPLACE takes 1.0 and 1 for one key
    ],
    ids=["integers", "any type", "bytes", "floats"],
)
def test_a_changed_key_has_the_type_that_the_database_stores(path, table, values, changed):
    with contextlib.closing(sqlite3.connect(path)) as db, contextlib.closing(SQLiteSource(path, ITEMS)) as source, db:
        db.executescript(f"DROP TABLE items; CREATE TABLE {table}")
        source.track()
        since = source.fingerprint()
        db.execute(f"INSERT INTO items VALUES {values}")
        db.commit()
        found = changes_of(source, since)["items"]
    assert {(type(key), key) for key in found} == {(type(key), key) for key in changed}


def test_a_failed_statement_is_not_logged(source, write):
    since = source.fingerprint()
    write("UPDATE items SET id = 'a'", expect="UNIQUE constraint failed")
    assert source.fingerprint() == since


def test_a_bulk_insert(source, write):
    since = source.fingerprint()
    number = "WITH RECURSIVE i (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM i WHERE n < 5000) "
    write(f"{number} INSERT INTO items SELECT 'k' || n, NULL, n FROM i")
    assert keys(source, since) == sorted(f"k{n}" for n in range(1, 5001))


def test_what_ignore_kept_is_logged_at_most_for_another_unique_column(source, write):
    # The one case in which a key is logged although nothing changed: docs/tracking.md says so.
    since = source.fingerprint()
    write("INSERT OR IGNORE INTO items VALUES ('z', 'a@', 7)")
    assert keys(source, since) == ["a"]


CONFLICTS = {
    "a case-blind key": (
        ("CREATE TABLE items (id TEXT PRIMARY KEY COLLATE NOCASE, n);INSERT INTO items VALUES ('a', 1)"),
        "REPLACE INTO items VALUES ('A', 2)",
        "Aa",
    ),
    "a case-blind column": (
        ("CREATE TABLE items (id TEXT PRIMARY KEY, n TEXT COLLATE NOCASE UNIQUE);INSERT INTO items VALUES ('a', 'x')"),
        "REPLACE INTO items VALUES ('b', 'X')",
        "ab",
    ),
    "several columns": (
        ("CREATE TABLE items (id TEXT, x, y, UNIQUE (x, y));INSERT INTO items VALUES ('a', 1, 1), ('b', 1, 2)"),
        "REPLACE INTO items VALUES ('c', 1, 2)",
        "bc",
    ),
    "a default in place of NULL": (
        ("CREATE TABLE items (id TEXT, x TEXT NOT NULL DEFAULT 'd' UNIQUE);INSERT INTO items VALUES ('a', 'd')"),
        "REPLACE INTO items VALUES ('b', NULL)",
        "ab",
    ),
    "affinity": (
        ("CREATE TABLE items (id TEXT, x INTEGER UNIQUE);INSERT INTO items VALUES ('a', 7)"),
        "REPLACE INTO items VALUES ('b', '7')",
        "ab",
    ),
    "the conflict clause of the table": (
        ("CREATE TABLE items (id TEXT, x UNIQUE ON CONFLICT REPLACE);INSERT INTO items VALUES ('a', 7)"),
        "INSERT INTO items VALUES ('b', 7)",
        "ab",
    ),
    "an integer primary key": (
        ("CREATE TABLE items (id TEXT, rowid TEXT, x INTEGER PRIMARY KEY);INSERT INTO items VALUES ('a', 7, 7)"),
        "UPDATE OR REPLACE items SET x = 7 WHERE id = 'b'",
        "ab",
    ),
    "an integer primary key in a table without a name for its rowid": (
        (
            "CREATE TABLE items (id TEXT, rowid, oid, _rowid_, x INTEGER PRIMARY KEY);"
            "INSERT INTO items (id, x) VALUES ('a', 7)"
        ),
        "REPLACE INTO items (id, x) VALUES ('b', 7)",
        "ab",
    ),
    "without rowid": (
        ("CREATE TABLE items (x, y, id TEXT, PRIMARY KEY (x, y)) WITHOUT ROWID;INSERT INTO items VALUES (1, 2, 'a')"),
        "REPLACE INTO items VALUES (1, 2, 'b')",
        "ab",
    ),
    "an index made by hand, with an order": (
        ("CREATE TABLE items (id TEXT, x);CREATE UNIQUE INDEX i ON items (x DESC);INSERT INTO items VALUES ('a', 1)"),
        "REPLACE INTO items VALUES ('b', 1)",
        "ab",
    ),
    "a trigger of the user's own that moves a row into the way": (
        (
            "CREATE TABLE items (id TEXT, x UNIQUE);"
            "INSERT INTO items VALUES ('a', 1);"
            "CREATE TRIGGER own BEFORE INSERT ON items WHEN NEW.id = 'b' BEGIN UPDATE items SET x = 2; END"
        ),
        "REPLACE INTO items VALUES ('b', 2)",
        "ab",
    ),
    "a foreign key that cascades": (
        (
            "CREATE TABLE items (id TEXT PRIMARY KEY, up TEXT REFERENCES items ON DELETE CASCADE ON UPDATE CASCADE);"
            "INSERT INTO items VALUES ('a', NULL), ('b', 'a'), ('c', 'b')"
        ),
        "DELETE FROM items WHERE id = 'a'",
        "abc",
    ),
    "a key that is generated": (
        (
            "CREATE TABLE items (doc TEXT, id TEXT AS (json_extract(doc, '$.id')) STORED UNIQUE);"
            """INSERT INTO items VALUES ('{"id": "a"}')"""
        ),
        """UPDATE items SET doc = '{"id": "b"}'""",
        "ab",
    ),
}


@pytest.mark.parametrize("case", CONFLICTS.values(), ids=CONFLICTS)
def test_rows_that_go_for_another_reason_than_their_key(tmp_path, sources, foreign, case):
    script, statement, changed = case
    path = make(tmp_path / "items.db", script)
    write, source = foreign(path), sources(path)
    write("PRAGMA foreign_keys = ON")
    if "WHERE id = 'b'" in statement:
        write("INSERT INTO items (id) VALUES ('b')")
    source.track()
    since = source.fingerprint()
    write(statement)
    assert keys(source, since) == list(changed)


@pytest.mark.parametrize(
    "index",
    ["items (lower(email))", "items (email) WHERE n > 1", "items (loud)"],
    ids=["expression", "partial", "generated"],
)
def test_a_table_that_triggers_cannot_watch_is_refused(tmp_path, sources, foreign, index):
    script = "CREATE TABLE items (id TEXT PRIMARY KEY, email, n, loud AS (upper(email)));"
    path = make(tmp_path / "items.db", script)
    source = sources(path)
    source.track()
    assert exact(source)
    foreign(path)(f"CREATE UNIQUE INDEX odd ON {index}")
    assert not exact(source)
    with pytest.raises(SourceError, match="'items' cannot be tracked: its unique index 'odd'"):
        source.track()


def test_odd_names(tmp_path, sources, foreign):
    table, key = "it'e\"m.s %;--", 'a "k"\'.ey'
    quoted, column = ('"' + name.replace('"', '""') + '"' for name in (table, key))
    path = make(tmp_path / "odd.db", f"CREATE TABLE {quoted} (x UNIQUE, {column} TEXT PRIMARY KEY) WITHOUT ROWID")
    source, write = sources(path, Schema("odd", table=table.upper(), key=key)), foreign(path)
    assert source.track().changed
    assert not source.track().changed
    since = source.fingerprint()
    write(f"INSERT INTO {quoted} VALUES (1, 'k')")
    assert keys(source, since, "odd") == ["k"]
    write(f"REPLACE INTO {quoted} VALUES (1, 'l')")
    assert keys(source, since, "odd") == ["k", "l"]
    assert source.untrack()


def test_names_that_differ_in_their_dots_only(tmp_path, sources, foreign):
    path = make(tmp_path / "dots.db", 'CREATE TABLE "a.b" (c TEXT); CREATE TABLE a ("b.c" TEXT)')
    source = sources(path, Schema("one", table="a.b", key="c"), Schema("two", table="a", key="b.c"))
    source.track()
    since = source.fingerprint()
    foreign(path)("""INSERT INTO "a.b" VALUES ('x')""")
    assert changes_of(source, since) == {"one": {"x"}, "two": set()}


def test_collections_of_one_table_and_of_several(tmp_path, sources, foreign):
    path = make(tmp_path / "items.db")
    schemas = (
        ITEMS,
        Schema("mails", table="items", key="email"),
        Schema("again", key="ID", table="ITEMS"),
        Schema("other", key="id"),
    )
    source, write = sources(path, *schemas), foreign(path)
    source.track()
    since = source.fingerprint()
    write("UPDATE items SET email = 'x@' WHERE id = 'a'")
    assert changes_of(source, since) == {"items": {"a"}, "mails": {"a@", "x@"}, "again": {"a"}, "other": set()}
    alone = sources(path, Schema("other", key="id"))
    assert alone.fingerprint() == source.fingerprint()
    assert changes_of(alone, since) == {"other": set()}


def test_a_bank_of_patterns(tmp_path, foreign):
    write_bank(tmp_path / "bank.db", 20)
    with contextlib.closing(PatternsSource(tmp_path / "bank.db")) as source:
        tables = source.track().tables
        assert [(found.table, found.key) for found in tables] == [("patterns", "id"), ("agent_configs", "agent_id")]
        since = source.fingerprint()
        with source.read() as reading:
            (first, *_) = reading.records("patterns")
        foreign(tmp_path / "bank.db")(["UPDATE patterns SET content = 'new' WHERE id = ?", [first.values[0]]])
        assert changes_of(source, since) == {"patterns": {first.values[0]}, "agent_configs": set()}


# ---- what cannot be told ---------------------------------------------------------------------------------------------


def test_a_trimmed_log_says_so(path, sources, foreign):
    source, write = sources(path), foreign(path)
    source.track(limit=100)
    begin = source.fingerprint()
    write("BEGIN", *["UPDATE items SET n = n + 1 WHERE id = 'a'"] * 90, "COMMIT")
    assert keys(source, begin) == ["a"]
    later = source.fingerprint()
    write("BEGIN", *["UPDATE items SET n = n + 1 WHERE id = 'b'"] * 2 * TRIM_EVERY, "COMMIT")
    assert source.changes(begin) is source.changes(later) is None
    with contextlib.closing(sqlite3.connect(path)) as db:
        (size,) = db.execute("SELECT count(*) FROM _mmcache_changes").fetchone()
    assert 100 <= size < 100 + TRIM_EVERY
    recent = source.fingerprint()
    write("DELETE FROM items WHERE id = 'c'")
    assert keys(source, recent) == ["c"]


DISTURBANCES = {
    "a trigger is dropped": "DROP TRIGGER [_mmcache_delete_items.id]",
    "a trigger is another": (
        "DROP TRIGGER [_mmcache_delete_items.id];"
        "CREATE TRIGGER [_mmcache_delete_items.id] AFTER DELETE ON items BEGIN SELECT 1; END"
    ),
    "the trim is dropped": "DROP TRIGGER _mmcache_trim",
    "the table is made anew": "DROP TABLE items; CREATE TABLE items (id TEXT PRIMARY KEY, n)",
    "the table has another unique index": "CREATE UNIQUE INDEX more ON items (n)",
    "the table is renamed and another has its name": (
        "ALTER TABLE items RENAME TO old; CREATE TABLE items (id TEXT PRIMARY KEY, n)"
    ),
    "the log is emptied": "DELETE FROM _mmcache_changes",
    "the state is emptied": "DELETE FROM _mmcache_tracking",
}


@pytest.mark.parametrize("script", DISTURBANCES.values(), ids=DISTURBANCES)
def test_a_damaged_tracking_shows_and_tracking_again_repairs_it(path, source, foreign, script):
    before = source.fingerprint()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(script)
    damaged = source.fingerprint()
    assert source.changes(before) is source.changes(damaged) is None
    assert source.track().changed
    assert not source.track().changed
    assert source.changes(before) is source.changes(damaged) is None
    since = source.fingerprint()
    foreign(path)("INSERT INTO items (id) VALUES ('new')", "DELETE FROM items WHERE id = 'new'")
    assert keys(source, since) == ["new"]
    assert source.untrack()
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT name FROM sqlite_master WHERE name LIKE '%mmcache%'").fetchall() == []


def test_entries_removed_by_hand_are_missed(source, write):
    since = source.fingerprint()
    write("DELETE FROM items", "DELETE FROM _mmcache_changes WHERE key = 'b'")
    assert source.changes(since) is None


@pytest.mark.parametrize(
    "statement",
    [
        "VACUUM",
        "ALTER TABLE items ADD COLUMN more DEFAULT 1",
        "ALTER TABLE items RENAME COLUMN email TO mail",
        "CREATE INDEX i ON items (n)",
    ],
)
def test_after_a_change_of_schema_everything_may_have_changed(source, write, statement):
    before = source.fingerprint()
    write(statement)
    after = source.fingerprint()
    assert after != before
    assert source.changes(before) is None
    write("UPDATE items SET n = 0 WHERE id = 'a'")
    assert keys(source, after) == ["a"]


def test_a_backup_put_back_is_another_history(tmp_path, path, source, write):
    start = source.fingerprint()
    with contextlib.closing(sqlite3.connect(path)) as db, contextlib.closing(sqlite3.connect(tmp_path / "b")) as backup:
        db.backup(backup)
    write("UPDATE items SET n = 8 WHERE id = 'a'", "UPDATE items SET n = 8 WHERE id = 'b'")
    lost = source.fingerprint()
    with contextlib.closing(sqlite3.connect(tmp_path / "b")) as backup, contextlib.closing(sqlite3.connect(path)) as db:
        backup.backup(db)
    assert source.changes(lost) is None
    for _ in range(3):  # up to, and past, the same number
        write("UPDATE items SET n = 9 WHERE id = 'c'")
        assert source.fingerprint() != lost
        assert source.changes(lost) is None
    # SQLite's backup moves the schema's version, so that here even the common start counts as unknown.
    assert source.changes(start) is None


def test_copies_that_go_their_own_ways_do_not_pass_for_each_other(tmp_path, sources, foreign):
    make(tmp_path / "one.db", journal="delete")
    one = sources(tmp_path / "one.db")
    one.track()
    start = one.fingerprint()
    shutil.copy(tmp_path / "one.db", tmp_path / "two.db")
    two = sources(tmp_path / "two.db")
    assert two.fingerprint() == start
    foreign(tmp_path / "one.db")("UPDATE items SET n = 8 WHERE id = 'a'")
    foreign(tmp_path / "two.db")("UPDATE items SET n = 8 WHERE id = 'b'", "UPDATE items SET n = 8 WHERE id = 'c'")
    assert keys(one, start) == ["a"]
    assert keys(two, start) == ["b", "c"]
    assert two.changes(one.fingerprint()) is None
    before = one.fingerprint()
    os.replace(tmp_path / "two.db", tmp_path / "one.db")
    assert one.fingerprint() == position_of(tmp_path / "one.db")
    assert one.changes(before) is None
    assert keys(one, start) == ["b", "c"]


def position_of(path):
    """What a source that has just come says."""
    with contextlib.closing(SQLiteSource(path, ITEMS)) as fresh:
        return fresh.fingerprint()


def test_another_database_at_the_path(tmp_path, path, source, sources):
    before = source.fingerprint()
    source.fetch("items", ["a"])  # a connection that stays open
    make(tmp_path / "new.db", CREATE.replace("'a@'", "'new@'"), journal="delete")
    for tracked in (False, True):
        if tracked:
            track(tmp_path / "new.db", [ITEMS])
        for name in ("items.db-wal", "items.db-shm"):
            (tmp_path / name).unlink(missing_ok=True)
        shutil.copy(tmp_path / "new.db", tmp_path / "copy")
        os.replace(tmp_path / "copy", path)
        assert source.fingerprint() != before
        assert source.changes(before) is None
        assert exact(source) is tracked
        assert source.fetch("items", ["a"])[0].values[1] == "new@"


@pytest.mark.parametrize("since", [b"", bytes(32), b"x" * 31])
def test_a_fingerprint_of_something_else_is_not_known(source, since):
    assert source.changes(since) is None
    known = bytearray(source.fingerprint())
    for position in range(32):
        known[position] ^= 1
        assert source.changes(bytes(known)) is None
        known[position] ^= 1


def test_a_since_from_before_a_read_covers_what_the_read_did_not_see(tmp_path, sources, foreign):
    path = make(tmp_path / "items.db")
    source, write = sources(path), foreign(path)
    source.track()
    since = source.fingerprint()
    write("UPDATE items SET n = 10 WHERE id = 'a'")
    with source.read() as reading:
        records = iter(reading.records("items"))
        next(records)
        write("UPDATE items SET n = 20 WHERE id = 'b'")
        assert [record.values[2] for record in records] == [2, 3]
    assert keys(source, since) == ["a", "b"]


def test_any_writes_at_all_against_a_model(tmp_path, sources, foreign):
    """Random statements of every kind: never a key too few, and for plain ones none too many."""
    path = make(tmp_path / "items.db", CREATE + "CREATE UNIQUE INDEX both ON items (n, email COLLATE NOCASE)")
    source, write, chance = sources(path), foreign(path), random.Random(7)
    source.track()

    def rows():
        with source.read() as reading:
            return {record.values[0]: record.values for record in reading.records("items")}

    for _ in range(150):
        before, since = rows(), source.fingerprint()
        plain = True
        statements = []
        for _ in range(chance.randint(1, 4)):
            key, other, email = (chance.choice("abcdefg") for _ in range(3))
            verb, exactly = chance.choice(
                [
                    (
                        ["INSERT OR REPLACE INTO items VALUES (?, ?, ?)", [key, email.upper(), chance.randint(0, 2)]],
                        False,
                    ),
                    (["INSERT OR IGNORE INTO items VALUES (?, ?, ?)", [key, email, chance.randint(0, 2)]], False),
                    (["UPDATE OR REPLACE items SET id = ?, email = ? WHERE id = ?", [key, email, other]], False),
                    (["UPDATE OR IGNORE items SET email = ? WHERE id >= ?", [email, key]], False),
                    (
                        ["INSERT INTO items VALUES (?, NULL, ?) ON CONFLICT (id) DO UPDATE SET n = -n - 1", [key, 5]],
                        True,
                    ),
                    (["UPDATE items SET n = n + 10 WHERE id = ?", [key]], True),
                    (["DELETE FROM items WHERE id = ?", [key]], True),
                ]
            )
            statements.append(verb)
            plain &= exactly and len(statements) == 1
        undone = chance.random() < 0.2
        write("BEGIN", *statements, "ROLLBACK" if undone else "COMMIT")
        after = rows()
        really = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        found = source.changes(since)
        assert found.keys["items"] >= really
        if plain or undone:
            assert found.keys["items"] == really
            assert (found.fingerprint == since) is (not really)


# ---- the fingerprint of what is not tracked, and of what was not changed ---------------------------------------------


def test_only_writes_to_tracked_tables_move_the_fingerprint(source, write):
    since = source.fingerprint()
    for n in range(3):
        write(["INSERT INTO other VALUES (?)", [f"x{n}" * 999]])
        assert source.fingerprint() == since
    write("UPDATE items SET n = 5 WHERE id = 'a'")
    assert source.fingerprint() != since


def test_files_that_look_the_same_are_not_opened(tmp_path, sources):
    source = sources(make(tmp_path / "items.db", journal="delete"))
    for _ in range(2):
        before = settled(source)
        with inside.no_connections(source):
            assert source.fingerprint() == before
        source.track()


def settled(source):
    """A fingerprint that is remembered: its files are old enough."""
    return until("it is remembered", lambda: inside.remembered_fingerprint(source, source.fingerprint()))


def test_an_untracked_database_that_is_written_all_the_time_never_looks_unchanged(tmp_path, sources, clock):
    """The clock stands where the last write was, however long ago that is on a busy machine."""
    path = make(tmp_path / "items.db")
    source = sources(path)
    seen = []
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        for _ in range(20):
            db.execute("UPDATE items SET n = -n")
            clock.stand(max(os.stat(file).st_ctime for file in (path, f"{path}-wal") if os.path.exists(file)))
            seen += [source.fingerprint(), source.fingerprint()]
    assert len(set(seen)) == len(seen)
    clock.ahead += 0.03
    assert source.fingerprint() == source.fingerprint()


def test_files_of_a_moment_ago_are_unsettled():
    clock = 1_000_000_000_000

    def stat(ctime):
        return fingerprint.stamp_of(os.stat_result([0] * 10, {"st_mtime_ns": 0, "st_ctime_ns": ctime}))

    now = time.time_ns()
    assert (
        fingerprint.unsettled(now) == fingerprint.unsettled(now, None) == fingerprint.unsettled(now, stat(clock)) == 0
    )
    for age in (0, 5_000_000, -5_000_000):
        assert 0 < fingerprint.unsettled(now, stat(now - age), None) <= 0.021
    assert fingerprint.unsettled(now, stat(now + 3600 * 10**9)) == 0  # a clock that was put back is no reason to wait
    # Looked at when it was young, however long ago that is by now.
    begun = now - 10**9
    assert fingerprint.unsettled(begun, stat(begun - 10_000_000)) > 0
    assert fingerprint.unsettled(begun, stat(begun + 10_000_000)) > 0
    assert fingerprint.once_only(bytes(32)) != fingerprint.once_only(bytes(32))


def test_a_database_that_a_writer_has_locked_counts_as_changed_at_once(tmp_path, foreign):
    path = make(tmp_path / "items.db", journal="delete")
    for tracked in (False, True):
        if tracked:
            track(path, [ITEMS])
        source = SQLiteSource(path, ITEMS, timeout=30)
        since = source.fingerprint()
        write = foreign(path)
        # A changed file, as fingerprint() would not ask otherwise.
        write("INSERT INTO other VALUES ('x')", "BEGIN EXCLUSIVE", "INSERT INTO other VALUES ('y')")
        begun = time.monotonic()
        assert source.changes(since) is None
        assert source.fingerprint() != source.fingerprint()
        assert time.monotonic() - begun < 15
        write("ROLLBACK")
        assert source.fetch("items", ["a"]) is not None
        source.close()


def test_after_a_fork_and_in_a_copy_the_answers_are_the_same(source, write):
    since = source.fingerprint()
    write("UPDATE items SET n = 5 WHERE id = 'a'")
    with contextlib.closing(pickle.loads(pickle.dumps(source))) as twin:
        assert twin.changes(since) == source.changes(since)
    assert ask_child(lambda: keys(source, since)) == ["a"]


# ---- installing and removing -----------------------------------------------------------------------------------------


def test_twice_is_once(path, source):
    before = source.fingerprint(), path.read_bytes()
    again = source.track()
    assert not again.changed
    assert (source.fingerprint(), path.read_bytes()) == before
    assert source.track(limit=1000) == again._replace(limit=1000, changed=True)
    assert source.fingerprint() == before[0]


def test_one_more_table_keeps_the_others(tmp_path, sources, foreign):
    path = make(tmp_path / "items.db")
    items, other = sources(path), sources(path, Schema("other"))
    items.track()
    assert not exact(other)
    other.track()
    assert exact(items)
    assert exact(other)


def test_removing_leaves_nothing_to_write_to(path, source, write):
    exactly = source.fingerprint()
    assert {"_mmcache_changes", "_mmcache_tracking", "_mmcache_trim"} < set(source.untrack())
    assert source.untrack() == ()
    assert not exact(source)
    assert source.changes(exactly) is None
    write("INSERT INTO items VALUES ('d', 'd@', 4)")
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT name FROM sqlite_master WHERE name LIKE '%mmcache%'").fetchall() == []


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (Schema("v"), "'v' is a view, which cannot be tracked by itself; name the tables that it reads"),
        (
            Schema("items", query="SELECT * FROM items"),
            "a query cannot be tracked by itself; name the tables that it reads",
        ),
        (Schema("none"), "the database has no table 'none'"),
        (Schema("items", key="nope"), "key: no column named nope; there are: id, email, n"),
        (Schema("text"), "'text' is a virtual table"),
        (Schema("items", table="_mmcache_changes", key="key"), "not a table of records"),
    ],
)
def test_what_cannot_be_tracked_is_refused_with_its_reason(tmp_path, sources, schema, reason):
    script = CREATE + "CREATE VIEW v AS SELECT * FROM items; CREATE VIRTUAL TABLE text USING fts5 (id);"
    path = make(tmp_path / "items.db", script)
    track(path, [ITEMS])
    before = path.read_bytes()
    with pytest.raises(SourceError) as raised:
        track(path, [Schema("other"), schema])
    assert str(raised.value).startswith(f"{path}: ")
    assert reason in str(raised.value)
    assert path.read_bytes() == before
    assert not exact(sources(path, schema))


def test_a_database_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(SourceError, match="there is no database at this path"):
        track(tmp_path / "none.db", [ITEMS])
    with pytest.raises(SourceError, match="there is no database at this path"):
        untrack(tmp_path / "none.db")
    assert not list(tmp_path.iterdir())
    (tmp_path / "text").write_text("no database at all, but text " * 99)
    with pytest.raises(SourceError, match="not a whole SQLite database"):
        track(tmp_path / "text", [ITEMS])
    path = make(tmp_path / "items.db", journal="delete")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(SourceError, match="locked"):
            track(path, [ITEMS], timeout=0.01)
    with pytest.raises(ValueError, match="limit"):
        track(path, [ITEMS], limit=0)
