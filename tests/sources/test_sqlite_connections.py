"""Connections that the user's own function opens, databases that nothing writes to, and what a connection lacks."""

from __future__ import annotations

import contextlib
import os
import pickle
import sqlite3
import sys
import tempfile
import threading
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import mmcache
from mmcache import Schema, SQLiteSource
from mmcache.errors import BuildError, SourceError
from mmcache.sources import from_spec, given_by, is_remakable
from mmcache.sources.base import ScanningSource
from tests.support.console import ok, run
from tests.support.processes import ask_child
from tests.support.waits import until

pytestmark = pytest.mark.usefixtures("no_leaks")


def backwards(one: str, other: str) -> int:
    return (one < other) - (one > other)


def connect(*args, **options):
    """As a user's module has it."""
    connection = sqlite3.connect(*args, **options)
    connection.create_collation("mine", backwards)
    connection.create_function("shout", 1, str.upper, deterministic=True)
    return connection


def attach(*args, **options):
    connection = sqlite3.connect(*args, **options)
    here = os.path.dirname(connection.execute("PRAGMA database_list").fetchone()[2])
    connection.execute("ATTACH ? AS more", (f"file://{here}/more.db?mode=ro",))
    return connection


HOOK = f"{__name__}:connect"


def execute(path, script):
    with closing(connect(path, isolation_level=None)) as db:
        db.executescript(script)


@pytest.fixture
def shop(tmp_path):
    path = tmp_path / "shop.db"
    execute(
        path,
        "CREATE TABLE items (id TEXT PRIMARY KEY, name TEXT COLLATE mine, n INT);"
        "CREATE UNIQUE INDEX by_name ON items (name);"
        "INSERT INTO items VALUES ('a', 'x', 1), ('b', 'y', 2);"
        "CREATE VIEW loud AS SELECT id, shout(name) AS name FROM items;",
    )
    return path


def rows(source):
    with source.read() as reading:
        return [record.values for record in reading.records(source.schemas[0].name)]


def spec_of(source) -> dict[str, Any]:
    spec = source.spec()
    assert spec is not None
    return spec


def query(sql, **options):
    return Schema("items", query=sql, **options)


# --- the hook


def test_a_hook_brings_collations_and_functions(shop):
    sorted_by = query("SELECT id, shout(name) AS name FROM items ORDER BY name COLLATE mine")
    with closing(SQLiteSource(shop, sorted_by, connect=connect)) as source:
        assert rows(source) == [("b", "Y"), ("a", "X")]
        assert [row and row.values for row in source.fetch("items", ["a"])] == [("a", "X")]
    with closing(SQLiteSource(shop, Schema("loud"), connect=HOOK)) as source:
        assert rows(source) == [("a", "X"), ("b", "Y")]


def test_a_source_with_a_hook_is_made_again_where_the_hook_is_given(shop):
    with closing(SQLiteSource(shop, Schema("loud"), connect=connect)) as source:
        assert spec_of(source)["connect"] == HOOK
        assert given_by(source) == {"connect": HOOK}
        assert is_remakable(source)
        again: Any = from_spec(spec_of(source), source.schemas, given_by(source))
        with closing(again), closing(pickle.loads(pickle.dumps(source))) as pickled:
            assert rows(again) == rows(pickled) == rows(source)
        with pytest.raises(SourceError, match=r"nothing that a file names is imported.*--connect"):
            from_spec(spec_of(source), source.schemas)


def test_a_hook_that_a_file_names_is_not_imported(shop, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SourceError, match="connect='evil:connect'"):
        from_spec({"kind": "sqlite", "path": str(shop), "connect": "evil:connect"}, [Schema("loud")])
    assert "evil" not in sys.modules


def test_a_file_with_a_hook_is_rebuilt_by_the_command_that_names_it(shop, path):
    mmcache.build(path, SQLiteSource(shop, Schema("loud"), connect=connect))
    refused = run("rebuild", path)
    assert refused.code == 1
    assert "--connect" in refused.err
    execute(shop, "UPDATE items SET name = 'z' WHERE id = 'a'")
    assert "generation 2" in ok("rebuild", path, "--connect", HOOK).out


def test_a_database_is_tracked_by_the_connections_of_a_hook(shop):
    assert "items, by id" in ok("track", shop, "--table", "items", "--connect", HOOK).out
    with closing(SQLiteSource(shop, Schema("items"), connect=connect)) as source:
        before = source.fingerprint()
        execute(shop, "UPDATE items SET n = 7 WHERE id = 'b'")
        changes = source.changes(before)
        assert changes is not None
        assert changes.keys == {"items": {"b"}}
    assert "_mmcache_changes" in ok("track", shop, "--remove", "--connect", HOOK).out
    assert "cannot be imported" in run("track", shop, "--connect", "nothing:here").err


def test_a_process_rebuilds_by_a_named_hook(shop, path):
    with mmcache.open(path, SQLiteSource(shop, Schema("loud"), connect=connect), rebuild_after=0.0) as cache:
        assert cache["a"]["name"] == "X"
        execute(shop, "UPDATE items SET name = 'z' WHERE id = 'a'")
        until("the rebuilt file", lambda: cache.refresh() or cache["a"]["name"] == "Z")
        assert cache["a"]["name"] == "Z"


def test_a_hook_without_a_name_rebuilds_here(shop, path):
    source = SQLiteSource(shop, Schema("loud"), connect=partial(connect))
    assert given_by(source) is None
    assert not is_remakable(source)
    assert mmcache.build(path, source).records == {"loud": 2}
    source.close()


def test_attached_databases_are_read_and_their_writes_noticed(shop, tmp_path):
    execute(
        tmp_path / "more.db", "CREATE TABLE prices (id TEXT PRIMARY KEY, cents INT); INSERT INTO prices VALUES ('a', 5)"
    )
    joined = query("SELECT items.id, cents FROM items JOIN more.prices USING (id)")
    with closing(SQLiteSource(shop, joined, connect=attach)) as source:
        until("a fingerprint that lasts", lambda: source.fingerprint() == source.fingerprint())
        before = source.fingerprint()
        assert rows(source) == [("a", 5)]
        assert source.fingerprint() == before
        execute(tmp_path / "more.db", "UPDATE prices SET cents = 6")
        assert source.fingerprint() != before
        assert rows(source) == [("a", 6)]
        with (
            pytest.raises(SourceError, match="attached database 'more'"),
            closing(SQLiteSource(shop, query(joined.query, tracks={"items": "id"}), connect=attach)) as tracked,
        ):
            tracked.track()


def test_an_attached_database_that_was_replaced_is_read_anew(shop, tmp_path):
    execute(
        tmp_path / "more.db", "CREATE TABLE prices (id TEXT PRIMARY KEY, cents INT); INSERT INTO prices VALUES ('a', 5)"
    )
    execute(tmp_path / "new.db", "CREATE TABLE prices (cents INT, id TEXT); INSERT INTO prices VALUES (7, 'a')")
    prices = Schema("prices", query="SELECT * FROM more.prices")
    with closing(SQLiteSource(shop, prices, connect=attach)) as source:
        assert [row and row.values for row in source.fetch("prices", ["a"])] == [("a", 5)]
        before = source.fingerprint()
        os.replace(tmp_path / "new.db", tmp_path / "more.db")
        assert source.fingerprint() != before
        assert [row and row.values for row in source.fetch("prices", ["a"])] == [("a", 7)]


def test_a_hook_must_hand_on_what_it_is_given(shop, tmp_path):
    execute(tmp_path / "other.db", "CREATE TABLE items (id)")
    for hook, said in (
        (lambda *_, **__: sqlite3.connect(":memory:"), "a database in memory"),
        (lambda *_, **__: sqlite3.connect(tmp_path / "other.db"), "other.db"),
        (lambda *_, **__: None, "must give a connection.*NoneType"),
        (lambda *_, **__: 1 / 0, "ZeroDivisionError"),
    ):
        with (
            closing(SQLiteSource(shop, Schema("loud"), connect=hook)) as source,
            pytest.raises(SourceError, match=said),
        ):
            source.fetch("loud", ["a"])


def test_a_hook_for_one_thread_is_told_what_to_hand_on(shop):
    def here(path, **_):
        return connect(path, uri=True)

    with closing(SQLiteSource(shop, Schema("loud"), connect=here)) as source:
        source.fetch("loud", ["a"])
        found = []

        def ask():
            try:
                source.fetch("loud", ["a"])
            except SourceError as error:
                found.append(str(error))

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        assert "check_same_thread" in found[0]


def test_what_is_no_hook_is_refused(shop):
    number: Any = 7
    with pytest.raises(ValueError, match="connect='json:nothing'"):
        SQLiteSource(shop, Schema("loud"), connect="json:nothing")
    with pytest.raises(TypeError, match="connect= takes a function"):
        SQLiteSource(shop, Schema("loud"), connect=number)


class Driver:
    """A module that is made like sqlite3, with errors of its own."""

    class Error(Exception):
        pass

    class DatabaseError(Error):
        pass

    class OperationalError(DatabaseError):
        pass

    @classmethod
    @contextlib.contextmanager
    def translated(cls):
        try:
            yield
        except sqlite3.OperationalError as error:
            raise cls.OperationalError(*error.args) from error
        except sqlite3.DatabaseError as error:
            raise cls.DatabaseError(*error.args) from error

    @classmethod
    def connect(cls, *args, **options):
        with cls.translated():
            return DriverConnection(sqlite3.connect(*args, **options))


class DriverConnection:
    def __init__(self, raw):
        self.__dict__["raw"] = raw

    def __getattr__(self, name):
        return getattr(self.raw, name)

    def __setattr__(self, name, value):
        setattr(self.raw, name, value)

    def execute(self, sql, parameters=()):
        with Driver.translated():
            return self.raw.execute(sql, parameters)


def test_errors_of_another_module_are_told_like_those_of_sqlite3(shop, tmp_path):
    with closing(SQLiteSource(shop, Schema("items"), connect=Driver.connect)) as source:
        assert [row[0] for row in rows(source)] == ["a", "b"]
        assert source.track().changed
    (tmp_path / "no.db").write_bytes(b"no database" * 512)
    with (
        closing(SQLiteSource(tmp_path / "no.db", Schema("items"), connect=Driver.connect)) as source,
        pytest.raises(SourceError, match=r"not a whole SQLite database.*SQLCipher"),
    ):
        source.fetch("items", ["a"])
    with closing(sqlite3.connect(shop, isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        with (
            closing(SQLiteSource(shop, Schema("items"), connect=Driver.connect, timeout=0)) as source,
            pytest.raises(SourceError, match="locked"),
        ):
            source.fetch("items", ["a"])


# --- what a connection lacks


@pytest.mark.parametrize(
    "sql", ["SELECT id, name FROM items", "SELECT * FROM (SELECT name, id FROM items) WHERE n < 3"]
)
def test_the_column_with_an_unknown_collation_is_named(shop, sql):
    sql = sql.replace(" WHERE n < 3", "")
    with (
        closing(SQLiteSource(shop, query(sql))) as source,
        pytest.raises(BuildError, match=r"column 'name' of 'items' has the collation mine.*connect=.*name COLLATE"),
    ):
        rows(source)
    cured = query("SELECT id, name COLLATE BINARY AS name FROM items")
    with closing(SQLiteSource(shop, cured)) as source:
        assert rows(source) == [("a", "x"), ("b", "y")]


def test_a_table_with_an_unknown_collation_is_counted_and_read(tmp_path):
    path = tmp_path / "n.db"
    execute(
        path,
        "CREATE TABLE t (n INTEGER PRIMARY KEY, name TEXT COLLATE mine, a, b);"
        "CREATE UNIQUE INDEX i ON t (name); INSERT INTO t VALUES (1, 'x', 0, 0), (2, 'y', 0, 0)",
    )
    with closing(SQLiteSource(path, Schema("t"))) as source, source.read() as reading:
        assert reading.count("t") == 2
        assert len(list(reading.records("t"))) == 2


def test_unknown_functions_and_modules_name_the_hook(shop):
    with (
        closing(SQLiteSource(shop, Schema("loud"))) as source,
        pytest.raises((SourceError, BuildError), match=r"no such function: shout.*connect=.*create_function"),
    ):
        rows(source)
    with (
        closing(SQLiteSource(shop, query("SELECT id, vec_length(name) AS n FROM items"))) as source,
        pytest.raises(BuildError, match=r"no such function: vec_length.*connect="),
    ):
        rows(source)


def test_a_connection_or_a_url_in_the_place_of_a_path_is_understood(shop):
    opened: Any = sqlite3.connect(shop)
    with closing(opened) as db, pytest.raises(TypeError, match=r"shop\.db.*connect="):
        SQLiteSource(db, Schema("items"))
    with pytest.raises(ValueError, match="in memory"):
        SQLiteSource(":memory:", Schema("items"))
    with closing(SQLiteSource(f"sqlite:///{shop}", Schema("items"))) as source:
        assert source.path == str(shop)


# --- immutable


def wal_database(path):
    execute(path, "PRAGMA journal_mode = WAL; CREATE TABLE items (id TEXT PRIMARY KEY); INSERT INTO items VALUES ('a')")
    return path


def test_an_immutable_database_in_wal_mode_makes_no_files(tmp_path):
    path = wal_database(tmp_path / "w.db")
    assert os.listdir(tmp_path) == ["w.db"]
    with closing(SQLiteSource(path, Schema("items"), immutable=True)) as source:
        assert rows(source) == [("a",)]
        assert os.listdir(tmp_path) == ["w.db"]
        again: Any = from_spec(spec_of(source), source.schemas)
        with closing(again):
            assert rows(again) == [("a",)]
        assert os.listdir(tmp_path) == ["w.db"]
        with pytest.raises(SourceError, match="immutable=True"):
            source.track()


def test_an_immutable_database_with_a_log_is_refused(tmp_path):
    path = wal_database(tmp_path / "w.db")
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("INSERT INTO items VALUES ('b')")
        with (
            closing(SQLiteSource(path, Schema("items"), immutable=True)) as source,
            pytest.raises(SourceError, match="wal_checkpoint"),
        ):
            rows(source)


def test_an_immutable_database_that_was_replaced_is_read_anew(tmp_path):
    path = wal_database(tmp_path / "w.db")
    with closing(SQLiteSource(path, Schema("items"), immutable=True)) as source:
        before = source.fingerprint()
        assert rows(source) == [("a",)]
        execute(tmp_path / "new.db", "CREATE TABLE items (id TEXT PRIMARY KEY); INSERT INTO items VALUES ('c')")
        os.replace(tmp_path / "new.db", path)
        assert source.fingerprint() != before
        assert rows(source) == [("c",)]


# --- look-ups that cost a whole table


def test_a_source_knows_where_a_lookup_reads_everything(tmp_path):
    path = tmp_path / "shop.db"
    execute(path, "CREATE TABLE items (id INTEGER PRIMARY KEY, name); CREATE TABLE notes (id INT, text)")
    costly = {
        "items": False,
        "notes": True,
        "SELECT id, name FROM items": False,
        "SELECT CAST(id AS TEXT) AS id FROM items": True,
        "SELECT id, count(*) AS n FROM items GROUP BY id": False,
        "SELECT s.id FROM items AS s": False,
        "SELECT CAST(s.id AS TEXT) AS id FROM items AS s": True,
        "SELECT items.id, text FROM items LEFT JOIN notes ON notes.id = items.id": True,
    }
    for what, is_costly in costly.items():
        schema = Schema("one", table=what, key="id") if " " not in what else Schema("one", query=what)
        with closing(SQLiteSource(path, schema)) as source:
            assert isinstance(source, ScanningSource)
            assert source.scans("one") is is_costly, what


def test_a_directory_that_cannot_be_written_is_named_with_the_way():
    """Of a database in WAL mode. Root could write anywhere, so a child is another user."""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        path = wal_database(Path(place) / "w.db")
        path.chmod(0o644)

        def ask(*, immutable):
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            with closing(SQLiteSource(path, Schema("items"), immutable=immutable)) as source:
                try:
                    return rows(source)
                except SourceError as error:
                    return str(error)

        os.chmod(place, 0o555)
        said = ask_child(partial(ask, immutable=False))
        assert f"{os.path.realpath(place)} cannot be written" in said
        assert "immutable=True), or --option immutable=true" in said
        assert ask_child(partial(ask, immutable=True)) == [("a",)]
        os.chmod(place, 0o755)
